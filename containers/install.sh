#!/bin/sh
# Installs largesparse from its source in /src into /opt/largesparse, on Debian 13: what the
# Dockerfile and the Apptainer definition next to this run. Packages come from Debian and PyPI.
set -eu

export DEBIAN_FRONTEND=noninteractive PIP_ROOT_USER_ACTION=ignore
apt-get update -q
apt-get install -qy --no-install-recommends python3 python3-venv openssh-client
python3 -m venv /opt/largesparse
/opt/largesparse/bin/pip install --no-cache-dir '/src[mpi,tables]'
/opt/largesparse/bin/largesparse info # fails where something is missing
rm -rf /src /var/lib/apt/lists/*
