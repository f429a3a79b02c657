#!/usr/bin/env bash
# Slurm for tests/cluster/test_slurm.py: Debian's and Ubuntu's packages. The tests start daemons of their own.
set -euo pipefail
if command -v slurmctld slurmd munged sbatch >/dev/null; then exit 0; fi
if ((EUID)) || ! command -v apt-get >/dev/null; then
  echo "no Slurm here, and none can be installed (root and apt-get are needed): its tests are skipped"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
