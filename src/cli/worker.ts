/** `objectlog worker`: one worker against given servers. */
import { Effect, Layer, Schema } from "effect"
import { Command } from "effect/cli"
import { isIPv6 } from "node:net"
import { ConfigInvalid, settings as readSettings, type Settings } from "../config/Config.ts"
import { Health } from "../observe/Health.ts"
import * as HttpServer from "../observe/HttpServer.ts"
import { TracingLive } from "../trace/TracingLive.ts"
import { processMetrics } from "../observe/processMetrics.ts"
import { runWorker } from "../pipeline/Worker.ts"
import { errorType } from "../shard/errorType.ts"
import { freePort } from "../embedded/freePort.ts"
import { checkHeap, watchHeap } from "./heap.ts"
import { workerLayers, type Servers } from "./layers.ts"
import { loggerLayer } from "./logging.ts"
import { announce } from "./output.ts"

class NoFreePort extends Schema.TaggedError<NoFreePort>()("NoFreePort", {
  variable: Schema.String,
  port: Schema.Number,
}) {
  override get message(): string {
    return `${this.variable}: port ${this.port} and the hundred after it are taken, or not allowed; set another one`
  }
}

/** Runs a worker until interrupted; `ready` is told where `/metrics` is once everything is connected. */
export const serve = <E, R>(
  settings: Settings,
  servers: Servers,
  ready: (metrics: string) => Effect.Effect<void, E, R>,
) =>
  Effect.gen(function* () {
    const { metricsHost: host } = settings
    // On the address that is listened on: somebody may have the port on another one only.
    const port = yield* freePort(settings.metricsPort, host)
    if (port === undefined) {
      // 0 is any port: where there is none at all, it is the address.
      if ((yield* freePort(0, host)) !== undefined) {
        return yield* new NoFreePort({ variable: "METRICS_PORT", port: settings.metricsPort })
      }
      const allowed = "an address of this machine, or 0.0.0.0 for all"
      return yield* new ConfigInvalid({ variable: "METRICS_HOST", value: host, allowed })
    }
    if (port !== settings.metricsPort) {
      yield* Effect.logWarning(`METRICS_PORT: ${settings.metricsPort} is taken, using ${port}`)
    }
    const worker = checkHeap(servers.shards.length).pipe(
      Effect.andThen(ready(`${isIPv6(host) ? `[${host}]` : host}:${port}`)),
      Effect.andThen(runWorker({ responseTopic: settings.topics.response, debug: settings.logLevel === "debug" })),
      Effect.raceFirst(watchHeap(servers.shards.length)),
    )
    // From before anything is connected until everything is closed: a worker that waits for a server says so.
    yield* Health.use((health) => Effect.provide(health.observing(worker), workerLayers(settings, servers))).pipe(
      Effect.provide(Layer.merge(HttpServer.layer(host, port), processMetrics).pipe(Layer.provideMerge(Health.layer))),
    )
  }).pipe(
    // Workers that start at the same moment find the same port free; who comes second looks again.
    Effect.retry({ while: (error) => error instanceof HttpServer.PortTaken, times: 100 }),
    // Around everything, so that the last spans are there when it is flushed.
    Effect.provide(TracingLive(settings.tracing, settings.topics.response, errorType)),
  )

export const workerCommand = Command.make(
  "worker",
  {},
  Effect.fnUntraced(function* () {
    const settings = yield* readSettings
    const { natsUrl: nats, shards } = settings
    if (nats === undefined) {
      return yield* new ConfigInvalid({
        variable: "NATS_URL",
        value: "",
        allowed: "a server list, such as nats://host:4222",
      })
    }
    if (shards === undefined) {
      return yield* new ConfigInvalid({ variable: "POSTGRES_IPS", value: "", allowed: "shards, such as host-a,host-b" })
    }
    yield* serve(settings, { nats, shards }, (metrics) =>
      announce(
        `objectlog worker ready: ${shards.length} shard${shards.length === 1 ? "" : "s"} (${shards.map((shard) => shard.name).join(", ")}), metrics on ${metrics}`,
      ),
    ).pipe(Effect.provide(loggerLayer(settings)))
  }),
).pipe(Command.withDescription("run a worker against NATS_URL and POSTGRES_IPS"))
