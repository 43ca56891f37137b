# The service. It needs TLS and credentials, or --insecure: it does not start otherwise on an address that others reach.
#
#     docker run -p 50051:50051 -v /models:/models:ro -v /etc/arrow-quant:/etc/arrow-quant:ro IMAGE \
#         --listen 0.0.0.0:50051 --model dream=/models/dream-7b --credentials /etc/arrow-quant/credentials.yaml \
#         --tls-certificate /etc/arrow-quant/server.pem --tls-key /etc/arrow-quant/server.key
#
# Arguments take the place of those of CMD, --listen too. docs/service.md says more.

FROM rust:1-slim-bookworm AS builder
WORKDIR /source
COPY . .
RUN cargo build --release --locked --bin arrow-quant

FROM debian:bookworm-slim
# Nobody who can log in; where tables may be stored is theirs.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin arrow-quant \
    && install --directory --owner=arrow-quant --group=arrow-quant --mode=0700 /var/lib/arrow-quant
COPY --from=builder /source/target/release/arrow-quant /usr/local/bin/arrow-quant
USER 10001:10001
WORKDIR /var/lib/arrow-quant
# Flight, and metrics if --metrics-listen 0.0.0.0:9090 is given.
EXPOSE 50051 9090
# Probes are those of gRPC (grpc.health.v1.Health).
HEALTHCHECK NONE
STOPSIGNAL SIGTERM
ENTRYPOINT ["arrow-quant", "serve"]
CMD ["--listen", "0.0.0.0:50051"]
