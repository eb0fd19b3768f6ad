/** For operators: `/metrics` in Prometheus' text form, `/livez`, and `/readyz` with the state of broker and shards. */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { Effect, Layer, Schema } from "effect"
import { HttpRouter, HttpServerResponse } from "effect/http"
import { PrometheusMetrics } from "effect/observability"
import { createServer } from "node:http"
import { Health } from "./Health.ts"

export class PortTaken extends Schema.TaggedError<PortTaken>()("PortTaken", {
  port: Schema.Number,
  cause: Schema.Defect(),
}) {
  override get message(): string {
    return `METRICS_PORT: can't listen on port ${this.port}: ${this.cause instanceof Error ? this.cause.message : String(this.cause)}`
  }
}

const routes = HttpRouter.use(
  Effect.fnUntraced(function* (router) {
    const health = yield* Health
    yield* router.add(
      "GET",
      "/livez",
      Effect.map(health.stuck, (findings) =>
        findings.length === 0
          ? HttpServerResponse.text("ok\n")
          : HttpServerResponse.text(`${findings.join("\n")}\n`, { status: 503 }),
      ),
    )
    yield* router.add(
      "GET",
      "/readyz",
      Effect.map(health.readiness, (readiness) =>
        HttpServerResponse.jsonUnsafe(readiness, { status: readiness.ready ? 200 : 503 }),
      ),
    )
  }),
)

/** Serves on one address, or on all with 0.0.0.0 or ::. `PortTaken` when the port can't be had. */
export const layer = (host: string, port: number) =>
  HttpRouter.serve(Layer.mergeAll(routes, PrometheusMetrics.layerHttp()), {
    disableLogger: true,
    disableListenLog: true,
  }).pipe(
    Layer.provide(NodeHttpServer.layer(createServer, { host, port, gracefulShutdownTimeout: "2 seconds" })),
    Layer.catchTag("ServeError", ({ cause }) => Layer.effectDiscard(Effect.fail(new PortTaken({ port, cause })))),
  )
