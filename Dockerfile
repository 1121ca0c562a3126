# docker build -t mwuf-dist .                             for a CPU
# docker build -t mwuf-dist:cuda --build-arg EXTRA=cuda .   for NVIDIA GPUs (NVIDIA Container Toolkit on the host)
# The commands are those of docs/install.md, where each is explained; a test holds the two equal.
FROM python:3.12-slim AS build
ARG EXTRA=cpu
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY mwuf_dist mwuf_dist
COPY kernels kernels
RUN python -m venv /opt/mwuf
ENV PATH=/opt/mwuf/bin:$PATH EXTRA=$EXTRA
RUN pip install uv
RUN uv build --wheel --out-dir dist
RUN uv pip install --torch-backend=$([ "$EXTRA" = cpu ] && echo cpu || echo cu130) torch==2.14.1
RUN uv pip install "$(ls dist/*.whl)[$EXTRA]" 'ray[default]'
RUN uv pip install --no-deps torchrec==1.9.0

FROM python:3.12-slim
# The loops are compiled for the processor at hand, at their first use.
RUN apt-get update && apt-get install --no-install-recommends -y g++ && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/mwuf /opt/mwuf
ENV PATH=/opt/mwuf/bin:$PATH
RUN useradd --create-home mwuf && mkdir /data && chown mwuf /data
USER mwuf
WORKDIR /data
COPY --chown=mwuf configs configs
ENTRYPOINT ["mwuf"]
CMD ["--help"]
