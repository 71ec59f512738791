# One image for Airflow's components, Celery's workers, MLflow's server and the serving replicas.
#
# The base is named by tag: its digest could not be looked up where this was written. Pin it for
# production, `--build-arg PYTHON=python:3.11-slim-bookworm@sha256:…`, as docs/deployment.md says.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
# The version that requirements.lock names; a test compares them.
ARG UV=0.13.8
# The extras that a deployment of docker-compose.yaml needs: no test tools, no Spark.
ARG EXTRAS="celery demo git openlineage postgres redis statsd"
ENV UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
RUN python -m pip install --quiet --no-cache-dir --disable-pip-version-check "uv==${UV}"
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
# The lock holds everything, tests too. Which of its packages the extras need is resolved against
# it; what is installed is the lock's own lines, with the lock's own hashes.
RUN <<'RESOLVE'
set -eu
flags=""
for extra in ${EXTRAS}; do flags="${flags} --extra ${extra}"; done
mkdir -p plugins/evergreen && echo '__version__ = "0"' > plugins/evergreen/__init__.py
uv pip compile pyproject.toml ${flags} --constraints requirements.lock --python-version 3.11 \
  --no-header --no-annotate --quiet --output-file needed.txt
python - <<'PYTHON'
import re
from pathlib import Path

name = re.compile(r"^([A-Za-z0-9._-]+)==")
needed = {m[1].lower() for m in map(name.match, Path("needed.txt").read_text().splitlines()) if m}
kept, keep, seen = [], False, set()  # a name may stand there twice, for different Pythons
for line in Path("requirements.lock").read_text().splitlines():
    if found := name.match(line):
        keep = found[1].lower() in needed
        seen.add(found[1].lower())
    if keep and not line.lstrip().startswith("#"):
        kept.append(line)
assert needed <= seen, f"not in requirements.lock: {sorted(needed - seen)}; run `make lock`"
Path("runtime.lock").write_text("\n".join(kept) + "\n")
PYTHON
RESOLVE
RUN python -m venv /opt/venv \
 && uv pip sync --quiet --require-hashes --compile-bytecode --python /opt/venv/bin/python runtime.lock
COPY plugins plugins
RUN uv pip install --quiet --no-deps --compile-bytecode --python /opt/venv/bin/python .

FROM ${PYTHON}
# git: DAG bundles from repositories; libgomp1: OpenMP, for gradient boosting.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends git libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home --shell /usr/sbin/nologin evergreen \
 && install --directory --owner evergreen --group evergreen --mode 0750 \
      /opt/evergreen/airflow/logs /opt/evergreen/airflow/plugins /opt/evergreen/auth /opt/evergreen/home
ENV AIRFLOW_HOME=/opt/evergreen/airflow \
    DO_NOT_TRACK=true \
    EVERGREEN_HOME=/opt/evergreen/home \
    MLFLOW_DISABLE_TELEMETRY=true \
    MPLBACKEND=Agg \
    OMP_WAIT_POLICY=PASSIVE \
    OPENBLAS_NUM_THREADS=1 \
    PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1
COPY --from=build /opt/venv /opt/venv
COPY dags /opt/evergreen/dags
COPY include /opt/evergreen/include
WORKDIR /opt/evergreen
USER 10001:10001
# What runs, and how its health is asked for, says docker-compose.yaml for each service.
CMD ["airflow", "version"]
