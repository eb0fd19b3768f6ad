/** Several `objectlog worker` processes side by side on one broker and two shards. */
import { assert, layer } from "@effect/vitest"
import { jetstreamManager } from "@nats-io/jetstream"
import { Effect, Layer, Schedule } from "effect"
import { TestNats, TestPostgres } from "../../bench/servers/privateServers.ts"
import { assertLogs, planAppends, spawnWorker, startWorkerProcess, workerEnvironment } from "./service.ts"
import { collectAnswers, ForeignClient, publishInSequence } from "../foreign/ForeignClient.ts"
import { within } from "../foreign/within.ts"

const servers = ForeignClient.layer.pipe(Layer.provideMerge(Layer.mergeAll(TestNats.layer, TestPostgres.layer(2))))

const startWorkers = (count: number) =>
  Effect.forEach(
    Array.from({ length: count }, (_, i) => i),
    () => startWorkerProcess,
    { concurrency: "unbounded" },
  )

/** Longer than a worker may need, and well below the 30 s after which the broker gives up on a delivery by itself. */
const answeredMillis = 15_000

layer(servers, { excludeTestServices: true, timeout: "60 seconds" })("workers", (it) => {
  it.effect("four that start at once on empty servers all come up, share one object and many, and lose nothing", () =>
    Effect.gen(function* () {
      const { connection } = yield* ForeignClient
      const workers = yield* startWorkers(4)
      assert.strictEqual(new Set(workers.map((worker) => worker.pid)).size, 4)

      const runs = [
        { prefix: "one-", count: 3_000, objects: [1] },
        { prefix: "fifty-", count: 4_000, objects: Array.from({ length: 50 }, (_, i) => 100 + i) },
      ]
      for (const run of runs) {
        const { bodies, expected } = planAppends(run)
        const answers = yield* collectAnswers(connection, run.prefix)
        yield* publishInSequence(connection, bodies)
        yield* answers.until(run.count, answeredMillis)
        yield* assertLogs(connection, expected)
        for (const [request, events] of answers.byRequest) {
          assert.lengthOf(events, 1, `events for ${request}`)
          assert.strictEqual(events[0]!.status, "ok")
          assert.isUndefined(events[0]!.duplicate)
        }
        assert.strictEqual(answers.byRequest.size, run.count)
        assert.strictEqual(new Set([...answers.byRequest.values()].map(([event]) => event!.seq)).size, run.count)
      }

      const ends = yield* Effect.forEach(workers, (worker) => worker.stop("SIGTERM", 10_000), {
        concurrency: "unbounded",
      })
      assert.deepStrictEqual(ends, [0, 0, 0, 0])
    }),
  )

  it.effect("with a heap that what it may hold would not fit in, it does not start, and says which would do", () =>
    Effect.gen(function* () {
      const worker = yield* spawnWorker({
        ...(yield* workerEnvironment),
        NODE_OPTIONS: "--max-old-space-size=128",
      })
      assert.strictEqual(yield* worker.ended.pipe(within("it ends", answeredMillis, worker.output)), 2)
      assert.match(
        worker.output(),
        /objectlog: the heap of \d+ MiB is too small for 2 shards and a max_payload of 1048576 bytes: set NODE_OPTIONS=--max-old-space-size=348, or lower max_payload of the broker\n$/,
      )
    }),
  )

  for (const flood of [
    { title: "", prefix: "term-", garbage: false, objects: Array.from({ length: 20 }, (_, i) => 200 + i) },
    {
      title: " with garbage",
      prefix: "garbage-",
      garbage: true,
      objects: Array.from({ length: 20 }, (_, i) => 300 + i),
    },
  ]) {
    it.effect(
      `SIGTERM in the middle of a flood${flood.title}: it ends with 0, and the other answers the rest at once`,
      () =>
        Effect.gen(function* () {
          const { connection } = yield* ForeignClient
          const [first] = yield* startWorkers(2)
          const { prefix, objects } = flood
          const count = 3_000
          const { bodies, expected } = planAppends({ prefix, count, objects })
          if (flood.garbage) {
            // Every other message, which is all of every other object.
            for (let i = 0; i < count; i += 2) bodies[i] = bodies[i]!.replace('"log":', '"log":1,"text":')
            for (let i = 0; i < objects.length; i += 2) expected.set(objects[i]!, [])
          }
          const answers = yield* collectAnswers(connection, prefix)
          // Stops it as soon as the first hundred are answered, whatever the publisher is doing.
          const [, , answered] = yield* Effect.all(
            [
              publishInSequence(connection, bodies),
              answers.until(count, answeredMillis),
              Effect.gen(function* () {
                yield* answers.until(100, answeredMillis)
                const before = answers.byRequest.size
                assert.strictEqual(yield* first!.stop("SIGTERM", 10_000), 0)
                return before
              }),
            ],
            { concurrency: "unbounded" },
          )
          assert.isBelow(answered, count)
          yield* assertLogs(connection, expected)
          const jsm = yield* Effect.promise(() => jetstreamManager(connection))
          // The last acks are on their way when the last event is seen: asked again until they are in.
          yield* Effect.promise(() => jsm.consumers.info("objectlog_logs", "objectlog")).pipe(
            Effect.repeat({
              until: (info) => info.num_ack_pending === 0 && info.num_pending === 0,
              schedule: Schedule.spaced("20 millis"),
            }),
            within("nothing is pending", 5_000),
          )
        }),
    )
  }
})
