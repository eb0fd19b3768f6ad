/** Of several servers one takes connections and says nothing: neither a worker nor a client waits for that one alone. */
import { assert, layer } from "@effect/vitest"
import { jetstreamManager } from "@nats-io/jetstream"
import { Effect, Layer, Result, Stream } from "effect"
import { Broker } from "../../src/broker/Broker.ts"
import { NatsLive } from "../../src/broker/NatsLive.ts"
import { Client } from "../../src/client/Client.ts"
import * as ObjectId from "../../src/contract/ObjectId.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { makeProxy } from "../../bench/servers/TcpProxy.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"
import { TestNats } from "../../bench/servers/privateServers.ts"
import { within } from "../foreign/within.ts"

/** The server's address by way of another port, with the credentials. */
const through = (url: string, port: number): string => Object.assign(new URL(url), { port: String(port) }).href

/** Links to the server: as many that hang, and one that is open. */
const links = Effect.fnUntraced(function* (hanging: number) {
  const { port, url } = yield* NatsServer
  const all = yield* Effect.all(Array.from({ length: hanging + 1 }, () => makeProxy(port)))
  for (const link of all.slice(0, hanging)) link.set({ kind: "stalled" })
  return all.map((link) => through(url, link.port)).join(",")
})

const topics = { logsTopic: "logs", queryTopic: "query", responseTopic: "response", deadTopic: "dead" }

layer(TestNats.layer, { excludeTestServices: true })("a server that hangs", (it) => {
  it.effect("holds up no worker, neither at the start nor when the connection is made again", () =>
    Effect.gen(function* () {
      const servers = yield* links(2)
      const settings = { servers, ...topics, replicas: 1, connectionName: "test" }
      yield* Effect.gen(function* () {
        const broker = yield* Broker
        assert.isTrue(broker.connection().connected)
        const { control } = yield* NatsServer
        yield* control.stop("SIGKILL")
        const connected = (wanted: boolean) =>
          Effect.sync(() => broker.connection().connected).pipe(
            Effect.delay("20 millis"),
            Effect.repeat({ until: (found) => found === wanted }),
            within(`connected: ${wanted}`, 20_000),
          )
        yield* connected(false)
        yield* Effect.orDie(control.start)
        yield* connected(true)
        yield* broker.publish([{ payload: "{}", messageId: "m", replyTo: undefined, trace: undefined }])
      }).pipe(Effect.provide(NatsLive(settings)), within("a worker on the servers", 40_000))
    }).pipe(Effect.scoped),
  )

  it.effect("takes a share of a client's time, and leaves the others theirs", () =>
    Effect.gen(function* () {
      const servers = yield* links(4)
      const { url } = yield* NatsServer
      const connection = yield* Effect.acquireRelease(
        Effect.promise(() => connectTo(url)),
        (open) => Effect.promise(() => open.close()),
      )
      yield* Effect.promise(async () => {
        const manager = await jetstreamManager(connection)
        await manager.streams.add({ name: "S", subjects: ["mine"] })
      })
      connection.subscribe("mine", {
        callback: (_, message) => {
          const { reply_to, request_id } = message.json<{ reply_to: string; request_id: string }>()
          const event = { type: "append", status: "ok", position: 1, seq: 1, timestamp: 1, request_id }
          connection.publish(reply_to, JSON.stringify(event))
        },
      })
      yield* Effect.promise(() => connection.flush())
      const append = Client.use((one) =>
        Stream.runCollect(one.append([{ id: ObjectId.fromDecimal("1")!, log: "" }])),
      ).pipe(
        Effect.provide(
          Layer.fresh(Client.layer({ servers, logsTopic: "mine", queryTopic: "none", timeout: "5 seconds" })),
        ),
      )
      // The library takes the servers in a random order.
      const outcomes = yield* Effect.all([append, append, append], { concurrency: "unbounded" })
      assert.isTrue(outcomes.flat().every(Result.isSuccess))
    }).pipe(Effect.scoped),
  )
})
