// What the page asks of its server.

const trouble = document.getElementById("trouble");

// The reply as JSON; null where nothing is new. Trouble is shown above the page until it is over.
export async function get(path, query = {}) {
  const reply = await checkReply(fetch(`/api/${path}?${new URLSearchParams(query)}`));
  return reply.status === 204 ? null : reply.json();
}

export async function post(path, body) {
  return (await checkReply(send(path, body))).json();
}

export const pictureUrl = (path) => `/api/picture/${path.split("/").map(encodeURIComponent).join("/")}`;

export const runPath = (run, what) => `runs/${encodeURIComponent(run)}/${what}`;

// Calls `on(type, data)` for each server-sent event of a drawing.
export async function draw(body, on, signal) {
  const reply = await send("draw", body, signal);
  if (!reply.ok) throw new Error(await reason(reply));
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const fields = Object.fromEntries(event.split("\n").filter(Boolean).map((line) => {
        const colon = line.indexOf(":");
        return [line.slice(0, colon), line.slice(colon + 1).trimStart()];
      }));
      if (fields.data) on(fields.event, JSON.parse(fields.data));
    }
  }
}

const send = (path, body, signal) => fetch(`/api/${path}`, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
});

async function checkReply(sent) {
  let message;
  try {
    const reply = await sent;
    if (reply.ok) {
      trouble.hidden = true;
      return reply;
    }
    if (reply.status === 401) location.reload();
    message = await reason(reply);
  } catch {
    message = "The server does not answer. This page goes on when it does.";
  }
  trouble.textContent = message;
  trouble.hidden = false;
  throw new Error(message);
}

async function reason(reply) {
  try {
    return String((await reply.json()).detail);
  } catch {
    return `The server answers with status ${reply.status}.`;
  }
}
