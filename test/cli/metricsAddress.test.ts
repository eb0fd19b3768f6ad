/** Where a worker serves its metrics. No server is needed: it listens while it waits for them. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Schedule } from "effect"
import { createServer, type ListenOptions, type Server } from "node:net"
import { networkInterfaces } from "node:os"
import { freePort } from "../../src/embedded/freePort.ts"
import { basePort } from "../../bench/servers/privateServers.ts"
import { spawnWorker } from "../service/service.ts"
import { within } from "../foreign/within.ts"

const nowhere = { NATS_URL: `127.0.0.1:${basePort + 41}`, POSTGRES_IPS: `127.0.0.1:${basePort + 42}` }

const listening = (options: ListenOptions) =>
  Effect.acquireRelease(
    Effect.callback<Server>((resume) => {
      const server = createServer().listen(options, () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.sync(() => server.close()),
  )

const answers = (host: string, port: number) =>
  Effect.tryPromise(() => fetch(`http://${host}:${port}/livez`)).pipe(
    Effect.as(true),
    Effect.orElseSucceed(() => false),
  )

const listens = (host: string, port: number, output: () => string) =>
  answers(host, port).pipe(
    Effect.repeat({ until: (found) => found, schedule: Schedule.spaced("50 millis") }),
    within(`listens on ${host}:${port}`, 15_000, output),
  )

/** An address of this machine that others can reach; the test has nothing to say where there is none. */
const reachable = Object.values(networkInterfaces())
  .flat()
  .find((found) => found?.family === "IPv4" && !found.internal)?.address

describe("metrics", () => {
  it.live("are for this machine alone, unless METRICS_HOST says otherwise", () =>
    Effect.gen(function* () {
      const port = (yield* freePort(basePort + 43, "0.0.0.0"))!
      yield* Effect.scoped(
        Effect.gen(function* () {
          const worker = yield* spawnWorker({ ...nowhere, METRICS_PORT: String(port) })
          yield* listens("127.0.0.1", port, worker.output)
          if (reachable !== undefined) assert.isFalse(yield* answers(reachable, port))
        }),
      )
      const open = yield* spawnWorker({ ...nowhere, METRICS_PORT: String(port), METRICS_HOST: "0.0.0.0" })
      yield* listens(reachable ?? "127.0.0.1", port, open.output)
    }).pipe(Effect.scoped),
  )

  it.live("take the next port where somebody has the wanted one, also on :: only", () =>
    Effect.gen(function* () {
      const port = (yield* freePort(basePort + 43, "::"))!
      yield* listening({ host: "::", port, ipv6Only: true })
      const next = (yield* freePort(port + 1, "::"))!
      const worker = yield* spawnWorker({ ...nowhere, METRICS_PORT: String(port), METRICS_HOST: "::" })
      yield* listens("[::1]", next, worker.output)
      assert.include(worker.output(), `METRICS_PORT: ${port} is taken, using ${next}`)
    }).pipe(Effect.scoped),
  )

  it.live("an address that this machine does not have is a wrong setting", () =>
    Effect.gen(function* () {
      const worker = yield* spawnWorker({ ...nowhere, METRICS_HOST: "203.0.113.9" })
      assert.strictEqual(yield* worker.stop("SIGCONT", 15_000), 2)
      assert.include(
        worker.output(),
        'METRICS_HOST: expected an address of this machine, or 0.0.0.0 for all, got "203.0.113.9"',
      )
    }).pipe(Effect.scoped),
  )
})
