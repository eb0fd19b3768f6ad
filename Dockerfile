# The image of every command. Node strips the types of the sources as it loads them, so nothing is built here.
ARG NODE_IMAGE=node:24.21.0-slim

FROM ${NODE_IMAGE} AS dependencies
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
# Left out: the tools, the Node that npm brings for older machines, and the PostgreSQL programs of `objectlog start`.
RUN --mount=type=cache,target=/npm-cache npm ci --cache /npm-cache --omit=dev --omit=optional --ignore-scripts
# What only an editor reads is half of the packages.
RUN find node_modules -type f \( -name '*.d.ts' -o -name '*.d.mts' -o -name '*.d.cts' -o -name '*.map' \) -delete \
 && rm -rf node_modules/effect/src node_modules/@effect/*/src node_modules/effect/ai-docs node_modules/@effect/*/ai-docs

FROM ${NODE_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="objectlog" \
      org.opencontainers.image.description="One append-only log of text messages per object, over NATS and sharded PostgreSQL" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="docker.io/library/node:24.21.0-slim"
ENV NODE_ENV=production
# Within a container the loopback address reaches nobody: what may reach the port is the network's matter.
ENV METRICS_HOST=0.0.0.0
WORKDIR /app
COPY --from=dependencies /app/node_modules node_modules
COPY package.json LICENSE ./
COPY src src
# By number, so that an orchestrator can see that it is not root. The program needs to write no file.
USER 1000:1000
EXPOSE 2112
# Read by the commands that serve; a compose file switches it off where `append`, `query` or `load` runs.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --start-interval=2s --retries=3 \
  CMD ["node", "-e", "require('node:http').get({ host: process.env.METRICS_HOST, port: process.env.METRICS_PORT || 2112, path: '/readyz', timeout: 4000 }, (answer) => process.exit(answer.statusCode === 200 ? 0 : 1)).on('timeout', () => process.exit(1)).on('error', () => process.exit(1))"]
# No shell stays in between: the program, which names its own flags of Node, is process 1, and SIGTERM reaches it.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/app/src/objectlog.js"]
CMD ["worker"]
