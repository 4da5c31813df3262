# A CPU image: docker build -t agl-sc . && docker run --rm -v "$PWD:/work" agl-sc demo
# For a GPU, build with --build-arg TORCH=https://download.pytorch.org/whl/cu128 and run with --gpus all.
FROM python:3.12-slim-bookworm
ARG TORCH=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch torchvision --index-url "$TORCH"
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN pip install --no-cache-dir "/src[slides]" && rm -rf /src
RUN useradd --create-home agl && mkdir /work && chown agl /work
USER agl
WORKDIR /work
ENV MPLBACKEND=Agg
ENTRYPOINT ["agl-sc"]
CMD ["--help"]
