// Asks again and again while a view is shown and its tab is looked at.

export async function live(look, seconds, signal) {
  while (!signal.aborted) {
    let soon = false;
    if (!document.hidden) {
      try {
        soon = await look();
      } catch (error) {
        console.warn(error); // shown above the page; the next request may reach the server again
      }
    }
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, soon ? 100 : seconds * 1000);
      signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
    });
  }
}
