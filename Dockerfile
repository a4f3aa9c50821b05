# For those who build images with a builder: `make image` first, which leaves the static binaries in target/image.
FROM scratch
COPY target/image/registry-mirror target/image/mirror /
ENV PATH=/
USER 65532:65532
ENTRYPOINT ["/registry-mirror"]
