/** What was to be settled waits while it is not known which stream is there, and dies with a stream that is gone. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Queue } from "effect"
import { type FoundStream, StreamLives } from "../../src/broker/StreamLife.ts"

const found: FoundStream = { name: "objectlog_logs", created: "2026-01-01T00:00:00Z" }

const start = Effect.gen(function* () {
  const answers: Array<string> = []
  let isConnected = true
  let changes = 0
  const streams = new StreamLives(found, () => isConnected, { answer: (_, answer) => void answers.push(answer) })
  streams.onChange.add(() => changes++)
  const questions = yield* Queue.unbounded<(answer: FoundStream) => void>()
  const ask = Effect.callback<FoundStream>((resume) => {
    Queue.offerUnsafe(questions, (answer) => resume(Effect.succeed(answer)))
  })
  yield* Effect.forkScoped(streams.keep(ask), { startImmediately: true })
  return {
    streams,
    answers,
    changes: () => changes,
    connect: (connected: boolean) => void (isConnected = connected),
    /** Answers the question which stream is there, and waits until that is known. */
    tell: (answer: FoundStream) => Effect.map(Queue.take(questions), (resume) => resume(answer)),
  }
})

describe("StreamLives", () => {
  it.effect("holds what is settled in doubt, and sends it once the stream is the same", () =>
    Effect.gen(function* () {
      const { answers, changes, streams, tell } = yield* start
      const life = streams.current
      streams.settle(life, "reply", "1")
      streams.doubt()
      assert.isFalse(streams.isSure)
      streams.settle(life, "reply", "2")
      streams.touch(life, "reply", "a sign")
      assert.deepStrictEqual(answers, ["1"])
      yield* tell(found)
      yield* streams.sure
      assert.deepStrictEqual(answers, ["1", "2"])
      assert.strictEqual(changes(), 0)
      assert.isTrue(streams.isSure)
    }).pipe(Effect.scoped),
  )

  it.effect("holds what is settled while there is no connection", () =>
    Effect.gen(function* () {
      const { answers, connect, streams, tell } = yield* start
      connect(false)
      streams.settle(streams.current, "reply", "1")
      assert.isEmpty(answers)
      streams.doubt()
      connect(true)
      yield* tell(found)
      yield* streams.sure
      assert.deepStrictEqual(answers, ["1"])
    }).pipe(Effect.scoped),
  )

  for (const other of [
    { ...found, created: "2026-01-02T00:00:00Z" },
    { ...found, name: "other" },
  ]) {
    it.effect(`settles nothing in another stream (${other.name}, ${other.created})`, () =>
      Effect.gen(function* () {
        const { answers, changes, streams, tell } = yield* start
        const before = streams.current
        streams.doubt()
        streams.settle(before, "reply", "held")
        yield* tell(other)
        yield* streams.sure
        streams.settle(before, "reply", "late")
        streams.touch(before, "reply", "a sign")
        assert.isEmpty(answers)
        assert.strictEqual(changes(), 1)
        assert.strictEqual(streams.name, other.name)
        streams.settle(streams.current, "reply", "new")
        assert.deepStrictEqual(answers, ["new"])
      }).pipe(Effect.scoped),
    )
  }

  it.effect("does not believe an answer to a question from before the last break", () =>
    Effect.gen(function* () {
      const { answers, streams, tell } = yield* start
      const before = streams.current
      streams.doubt()
      streams.settle(before, "reply", "held")
      const first = tell(found)
      streams.doubt()
      yield* first
      // It asks again by itself, and meanwhile nothing is sent.
      assert.isFalse(streams.isSure)
      assert.isEmpty(answers)
      yield* tell({ ...found, created: "2026-01-02T00:00:00Z" })
      yield* streams.sure
      assert.isEmpty(answers)
    }).pipe(Effect.scoped),
  )
})
