"""A Slurm of two nodes on this machine: daemons, key, ports and folder of its own."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.commands import environment, wait_for
from tests.cluster.head import free_ports

DAEMONS = ("munged", "slurmctld", "slurmd")

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=10
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=4 RealMemory=2000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=4 RealMemory=2000
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    folder: Path
    environment: dict[str, str]

    def __call__(
        self, *command: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> str:
        """Run one of Slurm's commands. Returns what it says; raises CalledProcessError."""
        return subprocess.run(
            [*map(str, command)],
            cwd=cwd or self.folder,
            env=self.environment | (env or {}),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Restarts, ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self("scontrol", "show", "job", number)))

    def is_idle(self) -> bool:
        """Whether both nodes are there, and nothing runs on them or is being cleared away. Before the
        controller answers, they are not."""
        command = ["sinfo", "-N", "-h", "-o", "%N %t"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return done.stdout == "n1 idle\nn2 idle\n"


def missing() -> str | None:
    """Why there can be no Slurm here; None: there can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    if absent := [name for name in DAEMONS if shutil.which(name) is None]:
        return f"{', '.join(absent)} not installed: run tests/cluster/install_slurm.sh"
    return None


@contextmanager
def two_nodes() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="slurm_", dir="/tmp"))
    host = socket.gethostname().partition(".")[0]
    port, n1, n2 = free_ports(3)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(folder=folder, host=host, port=port, n1=n1, n2=n2))
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o400)
    for name in ("state", "n1", "n2"):
        (folder / name).mkdir()
    own = {"SLURM_CONF": str(config), "TMPDIR": str(folder)}
    slurm = Slurm(folder, environment() | own)
    files = {"socket": "socket", "key-file": "key", "seed-file": "seed", "pid-file": "pid"}
    munge = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
    commands = [
        ["munged", "--foreground", "--force", f"--log-file={folder}/munge.log", *munge],
        ["slurmctld", "-D", "-c", "-f", str(config)],
        ["slurmd", "-D", "-f", str(config), "-N", "n1"],
        ["slurmd", "-D", "-f", str(config), "-N", "n2"],
    ]
    log = folder / "log"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        output = stack.enter_context(log.open("w"))
        for command in commands:
            process = subprocess.Popen(
                command, env=slurm.environment, stdout=output, stderr=subprocess.STDOUT
            )
            stack.callback(process.wait, timeout=30)
            stack.callback(process.send_signal, signal.SIGTERM)
            wait_for((folder / "munge.socket").exists, "munged", say=log.read_text)

        wait_for(slurm.is_idle, "the nodes", say=log.read_text)
        yield slurm
