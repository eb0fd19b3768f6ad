import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Logger, References } from "effect"
import { jsonLine, loggerLayer, readableLine } from "../../src/cli/logging.ts"

/** What a program logs, line by line. */
const logged = (logger: Logger.Logger<unknown, string>, program: Effect.Effect<void>) =>
  Effect.suspend(() => {
    const lines: Array<string> = []
    return program.pipe(
      Effect.provide(Logger.layer([Logger.map(logger, (line) => lines.push(line))])),
      Effect.as(lines),
    )
  })

const parsed = (line: string) => JSON.parse(line) as Record<string, unknown>

describe("a line of the log", () => {
  it.effect("is a JSON object with time, level and message", () =>
    Effect.gen(function* () {
      const [line] = yield* logged(jsonLine, Effect.logWarning("shard a:\nno connection"))
      assert.notInclude(line, "\n")
      assert.deepStrictEqual(parsed(line!), {
        timestamp: "1970-01-01T00:00:00.000Z",
        level: "warn",
        message: "shard a:\nno connection",
      })
    }),
  )

  it.effect("for a terminal holds nothing that it obeys, whatever is cited", () =>
    Effect.gen(function* () {
      const program = Effect.logWarning("said \u001b[2J\nforged", Cause.fail(new Error("\u009bx"))).pipe(
        Effect.annotateLogs({ subject: "a\u202eb" }),
      )
      const [line] = yield* logged(readableLine, program)
      const [first, ...stack] = line!.split("\n")
      assert.include(first, "said \\x1b[2J\\nforged subject=a\\u202eb")
      assert.include(stack.join("\n"), "Error: \\x9bx")
      assert.notMatch(line!.replaceAll("\n", ""), /\p{Cc}|\p{Bidi_Control}/u)
    }),
  )

  it.effect("carries the ids of the span that it is in, and only then", () =>
    Effect.gen(function* () {
      const program = Effect.gen(function* () {
        const { spanId, traceId } = yield* Effect.currentSpan
        yield* Effect.logInfo("inside")
        return { trace_id: traceId, span_id: spanId }
      }).pipe(Effect.withSpan("append"), Effect.orDie)
      let ids = {}
      const [inside, outside] = yield* logged(
        jsonLine,
        Effect.andThen(
          Effect.tap(program, (found) => Effect.sync(() => (ids = found))),
          Effect.logInfo("outside"),
        ),
      )
      assert.deepInclude(parsed(inside!), ids)
      assert.notProperty(parsed(outside!), "trace_id")
      const [readable] = yield* logged(readableLine, Effect.asVoid(program))
      assert.match(readable!, /^00:00:00\.000 info {2}inside trace_id=[0-9a-f]{32} span_id=[0-9a-f]{16}$/)
    }),
  )

  it.effect("keeps annotations, with all digits of a big number, and what failed", () =>
    Effect.gen(function* () {
      const program = Effect.die(new Error("boom")).pipe(
        Effect.tapCause((cause) => Effect.logError("it failed", cause)),
        Effect.annotateLogs({ seq: 18446744073709551615n, subject: "append" }),
        Effect.ignoreCause,
      )
      const [line] = yield* logged(jsonLine, program)
      const found = parsed(line!)
      assert.deepInclude(found, { level: "error", message: "it failed" })
      assert.deepStrictEqual(found["annotations"], { seq: "18446744073709551615", subject: "append" })
      assert.include(String(found["cause"]), "boom")
      const [readable] = yield* logged(readableLine, program)
      assert.include(readable, "it failed seq=18446744073709551615 subject=append")
    }),
  )

  it.effect("is left out below the level that is set", () =>
    Effect.gen(function* () {
      for (const [logLevel, minimum] of [
        ["debug", "Debug"],
        ["warn", "Warn"],
        ["off", "None"],
      ] as const) {
        const found = yield* References.MinimumLogLevel.pipe(Effect.provide(loggerLayer({ logLevel })))
        assert.strictEqual(found, minimum)
      }
    }),
  )
})
