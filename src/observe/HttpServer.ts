/** `/metrics` in Prometheus' text form, `/livez`, and `/readyz` with the state of every shard. */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { Effect, Layer, Schema } from "effect"
import { HttpRouter, HttpServerResponse } from "effect/http"
import { PrometheusMetrics } from "effect/observability"
import { createServer } from "node:http"
import { Broker } from "../broker/Broker.ts"
import { ShardPool } from "../shard/ShardPool.ts"

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
    const pool = yield* ShardPool
    const broker = yield* Broker
    yield* router.add("GET", "/livez", HttpServerResponse.text("ok\n"))
    yield* router.add(
      "GET",
      "/readyz",
      Effect.gen(function* () {
        const shards = yield* pool.health
        const connected = broker.isConnected()
        // A worker with one shard down still serves the others, so it is ready while any shard answers.
        const ready = connected && shards.some((shard) => shard.ok)
        return HttpServerResponse.jsonUnsafe(
          { ready, broker: { ok: connected }, shards },
          { status: ready ? 200 : 503 },
        )
      }),
    )
  }),
)

/** Serves on all addresses; `PortTaken` when the port can't be had. */
export const layer = (port: number) =>
  HttpRouter.serve(Layer.mergeAll(routes, PrometheusMetrics.layerHttp()), {
    disableLogger: true,
    disableListenLog: true,
  }).pipe(
    Layer.provide(NodeHttpServer.layer(createServer, { port, gracefulShutdownTimeout: "2 seconds" })),
    Layer.catchTag("ServeError", ({ cause }) => Layer.effectDiscard(Effect.fail(new PortTaken({ port, cause })))),
  )
