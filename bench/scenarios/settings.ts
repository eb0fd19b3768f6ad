/** What settings cost: drains beside each other, with and without. */
import { Effect } from "effect"
import { createServer, type Server } from "node:http"
import type { AddressInfo } from "node:net"
import { onShard } from "../servers/onShard.ts"
import { add } from "../Report.ts"
import { Rig } from "../Rig.ts"
import { type Backlog, drain, type DrainOptions, inTurn, perAppend, shown, totalCpu } from "./drain.ts"

const scenario = "Settings"

/** Takes spans and forgets them; gives its address. */
const receiver = Effect.map(
  Effect.acquireRelease(
    Effect.callback<Server>((resume) => {
      const server = createServer((request, response) => {
        request.resume().once("end", () => response.end())
      }).listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
    }),
    (server) =>
      Effect.callback<void>((resume) => {
        server.close(() => resume(Effect.void))
        server.closeAllConnections()
      }),
  ),
  (server) => `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
)

const asynchronousCommit = Effect.flatMap(Rig, ({ shards }) =>
  Effect.forEach(shards, (shard) =>
    onShard(shard, (sql) =>
      Effect.andThen(sql`alter system set synchronous_commit = off`, sql`select pg_reload_conf()`),
    ),
  ),
)

export const runSettings = Effect.fnUntraced(function* ({ appends, rounds }: DrainOptions) {
  const usual: Backlog = { appends, objects: 1_000, size: 100 }
  const traced = Effect.flatMap(receiver, (endpoint) =>
    drain("objectlog", 1, usual, {
      variables: {
        OTEL_EXPORTER_OTLP_ENDPOINT: endpoint,
        OTEL_TRACES_SAMPLER: "parentbased_traceidratio",
        OTEL_TRACES_SAMPLER_ARG: "0.01",
      },
    }),
  )
  const of = yield* inTurn(rounds, [
    ["default", drain("objectlog", 1, usual)],
    ["traces", traced],
    ["asynchronous", Effect.andThen(asynchronousCommit, drain("objectlog", 1, usual))],
  ] as const)
  const base = of("default")
  yield* add({
    scenario,
    what: `as they are, ${shown(usual)}; ${perAppend(base.cpu)}`,
    value: base.rate,
    unit: "appends/s",
  })
  const traces = of("traces")
  const cost = totalCpu(traces) / totalCpu(base) - 1
  yield* add({
    scenario,
    what: `traces of 1 %; ${perAppend(traces.cpu)}; CPU ${(cost * 100).toFixed(1)} % more`,
    value: traces.rate,
    unit: "appends/s",
    ratio: { of: "as they are", value: traces.rate / base.rate },
    bar: { text: "CPU < 5 % more", reached: cost < 0.05 },
  })
  const asynchronous = of("asynchronous")
  yield* add({
    scenario,
    what: `synchronous_commit = off; ${perAppend(asynchronous.cpu)}`,
    value: asynchronous.rate,
    unit: "appends/s",
    ratio: { of: "as they are", value: asynchronous.rate / base.rate },
  })
})
