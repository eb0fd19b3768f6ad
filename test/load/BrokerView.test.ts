/** What the load generator asks of the broker, on a real one. */
import { assert, layer } from "@effect/vitest"
import { jetstream, jetstreamManager } from "@nats-io/jetstream"
import { Effect } from "effect"
import { ensureConsumer, parkedConsumer, provision } from "../../src/broker/provision.ts"
import { parkedSubject } from "../../src/broker/parked.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { readFloor, replayEvents } from "../../src/load/BrokerView.ts"
import { TestNats } from "../../bench/servers/privateServers.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"

const topics = { logsTopic: "logs", queryTopic: "query", responseTopic: "response", deadTopic: "dead", replicas: 1 }

const connected = Effect.gen(function* () {
  const { url } = yield* NatsServer
  const connection = yield* Effect.acquireRelease(
    Effect.promise(() => connectTo(url)),
    (one) => Effect.promise(() => one.close()),
  )
  return { connection, manager: yield* Effect.promise(() => jetstreamManager(connection)) }
})

layer(TestNats.layer, { excludeTestServices: true, timeout: "30 seconds" })("BrokerView", (it) => {
  it.effect("tells how far the workers are done, and nothing while appends are parked", () =>
    Effect.gen(function* () {
      const { connection, manager } = yield* connected
      const js = jetstream(connection)
      const floor = readFloor(connection, "logs")
      const publish = (subject: string) => Effect.promise(() => js.publish(subject, "x"))
      const acknowledge = (stream: string, consumer: string) =>
        Effect.promise(async () => {
          const message = await (await js.consumers.get(stream, consumer)).next({ expires: 5_000 })
          await message!.ackAck()
        })

      const { parked } = yield* provision(manager, topics)
      assert.strictEqual(yield* floor, 0)
      yield* publish("logs")
      yield* publish("logs")
      assert.strictEqual(yield* floor, 0)
      yield* acknowledge("objectlog_logs", "objectlog")
      assert.strictEqual(yield* floor, 1)

      yield* publish(parkedSubject("logs", "reads", "shard-a"))
      assert.strictEqual(yield* floor, 1, "a parked read holds no append")
      yield* publish(parkedSubject("logs", "appends", "shard-a"))
      assert.isUndefined(yield* floor, "nobody has taken what is parked")
      const spec = parkedConsumer("appends", "shard-a", topics)
      yield* ensureConsumer(manager, parked.name, spec)
      assert.isUndefined(yield* floor)
      yield* acknowledge(parked.name, spec.name)
      yield* acknowledge("objectlog_logs", "objectlog")
      assert.strictEqual(yield* floor, 2)
    }),
  )

  it.effect("gives events again, and says whether these are all", () =>
    Effect.gen(function* () {
      const { connection, manager } = yield* connected
      yield* provision(manager, topics)
      const replay = (since: number) => {
        const events: Array<string> = []
        return Effect.map(
          replayEvents(connection, "response", since, (data) => events.push(Buffer.from(data).toString())),
          (complete) => ({ complete, events }),
        )
      }
      assert.deepStrictEqual(yield* replay(0), { complete: true, events: [] })
      for (const event of ["1", "2", "3"]) yield* Effect.promise(() => jetstream(connection).publish("response", event))
      assert.deepStrictEqual(yield* replay(0), { complete: true, events: ["1", "2", "3"] })
      const last = yield* Effect.promise(() => manager.streams.getMessage("objectlog_response", { seq: 3 }))
      assert.deepStrictEqual(yield* replay(last!.time.getTime() + 1_000), { complete: true, events: [] })
      yield* Effect.promise(() => manager.streams.purge("objectlog_response", { seq: 2 }))
      assert.deepStrictEqual(yield* replay(0), { complete: false, events: ["2", "3"] })
    }),
  )
})
