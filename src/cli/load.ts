/** `objectlog load`: sends appends at a rate, and proves by reading back that the service keeps its guarantees. */
import { Deferred, Duration, Effect, Exit, Option, Result, type Scope, Stdio } from "effect"
import { Command, Flag } from "effect/cli"
import { randomInt } from "node:crypto"
import { queriesPerMinute } from "../config/Config.ts"
import * as ObjectId from "../contract/ObjectId.ts"
import { type Load, type LoadOptions, makeLoad } from "../load/Load.ts"
import { progressJson, progressText, summaryJson } from "../load/Tally.ts"
import type { Size } from "../load/Texts.ts"
import { LoadUnfinished, Violation } from "../load/Violation.ts"
import { parseTimeout } from "./append.ts"
import { ClientFailed } from "../client/connection.ts"
import { endInOwnTime, onSignal } from "./shutdown.ts"
import { complain, print } from "./output.ts"
import { serversFor } from "./servers.ts"
import { jsonLine } from "./terminal.ts"

const rateMax = 10_000_000
const objectsMax = 1_000_000
const sizeMax = 64 * 1024 * 1024

/** How often progress is shown. */
const terminalMillis = 500
const jsonMillis = 5_000

/** Has a terminal write over the line of before. */
const sameLine = "\r\u001b[2K"

const number = (text: string, minimum: number, maximum: number): number | undefined => {
  const value = /^\d{1,12}(?:\.\d{1,6})?$/.test(text) ? Number(text) : Number.NaN
  return value >= minimum && value <= maximum ? value : undefined
}

const integer = (text: string, minimum: number, maximum: number): number | undefined => {
  const value = number(text, minimum, maximum)
  return Number.isInteger(value) ? value : undefined
}

/** Reads `200` or `10-2000`. */
export const parseSize = (text: string): Size | undefined => {
  const parts = text.split("-")
  const min = integer(parts[0]!, 1, sizeMax)
  const max = parts.length === 1 ? min : integer(parts[1]!, 1, sizeMax)
  return parts.length > 2 || min === undefined || max === undefined || min > max ? undefined : { min, max }
}

/** A flag whose text is read by `parse`; what is refused is told `allowed`. */
const flag = <A>(name: string, parse: (text: string) => A | undefined, allowed: string, description: string) =>
  Flag.String(name).pipe(
    Flag.withDescription(description),
    Flag.filterMap(
      (text) => Option.fromUndefinedOr(parse(text)),
      () => allowed,
    ),
  )

const duration = (name: string, description: string) =>
  flag(name, parseTimeout, "seconds, or a time as 500ms, 30s or 2m", description)

/** Six letters and digits: of two runs on the same objects, one in two thousand million pairs has the same. */
const newRun = (): string =>
  randomInt(36 ** 6)
    .toString(36)
    .padStart(6, "0")

/** Sends, finishes, and prints meanwhile. A signal ends the sending; a second one ends the rest too. */
const runAndReport = Effect.fnUntraced(function* (load: Load, style: "text" | "json", terminal: boolean) {
  const progress = Effect.suspend(() =>
    print(
      style === "text"
        ? `${sameLine}${progressText(load.tally, load.phase(), load.elapsedMillis(), load.tally.recent).slice(0, (process.stdout.columns ?? 200) - 1)}`
        : `${progressJson(load.tally, load.phase(), load.elapsedMillis())}\n`,
    ),
  ).pipe(
    Effect.ignore,
    Effect.tap(() => Effect.sync(() => load.tally.recent.reset())),
  )
  yield* Effect.forkScoped(Effect.forever(Effect.delay(progress, style === "text" ? terminalMillis : jsonMillis)))

  return yield* Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      const sent = yield* Effect.exit(restore(load.send))
      const interrupted = Exit.isFailure(sent) && Exit.hasInterrupts(sent)
      const exit = Exit.isSuccess(sent) || interrupted ? yield* finish(load) : sent
      const failure = Exit.isFailure(exit) ? Exit.findErrorOption(exit) : Option.none()
      const error = Option.getOrUndefined(failure)
      const verdict = {
        ...(error instanceof Violation ? { violation: error } : {}),
        ...(error instanceof LoadUnfinished ? { failure: error.message } : {}),
        completelyRead: load.completelyRead(),
      }
      const printed = yield* Effect.result(
        print(
          style === "text"
            ? `${sameLine}${progressText(load.tally, error === undefined ? "ok" : "failed", load.elapsedMillis(), load.tally.latency)}\n`
            : `${jsonLine(summaryJson(load.tally, load.elapsedMillis(), verdict), terminal)}\n`,
        ),
      )
      // The exit of an interrupted fiber is the interruption, whatever comes of this.
      if (interrupted && error !== undefined) {
        process.exitCode = 1
        yield* complain(error.message)
      }
      if (Result.isFailure(printed) && Exit.isSuccess(exit)) return yield* printed.failure
      return yield* exit
    }),
  )
})

/** Runs on although the command's own fiber is interrupted already, until it is done or another signal comes. */
const finish = (load: Load): Effect.Effect<Exit.Exit<void, Violation | LoadUnfinished>, never, Scope.Scope> =>
  Effect.gen(function* () {
    const done = yield* Deferred.make<Exit.Exit<void, Violation | LoadUnfinished>>()
    const stop = () => {
      const reason = "ended by a second signal: not everything that was sent is verified"
      Deferred.doneUnsafe(done, Exit.succeed(Exit.fail(new LoadUnfinished({ reason }))))
    }
    const silence = onSignal(stop)
    yield* Effect.exit(load.finish).pipe(
      Effect.flatMap((exit) => Deferred.succeed(done, exit)),
      Effect.forkScoped,
    )
    const exit = yield* Deferred.await(done)
    silence()
    return exit
  })

export const loadCommand = Command.make(
  "load",
  {
    rate: flag(
      "rate",
      (text) => number(text, 0.001, rateMax),
      `appends a second, 0.001 … ${rateMax}`,
      "appends a second; without it, QUERIES_MIN a minute",
    ).pipe(Flag.optional),
    objects: flag(
      "objects",
      (text) => integer(text, 1, objectsMax),
      `an integer, 1 … ${objectsMax}`,
      "over how many objects, in turn",
    ).pipe(Flag.withDefault(10)),
    firstId: flag("first-id", ObjectId.fromDecimal, ObjectId.expected, "the first object; the others follow it").pipe(
      Flag.withDefault(1n as ObjectId.ObjectId),
    ),
    size: flag(
      "size",
      parseSize,
      "characters, or a range as 10-2000",
      "characters of a log, or a range as 10-2000",
    ).pipe(Flag.withDefault<Size>({ min: 100, max: 100 })),
    duration: duration(
      "duration",
      "how long to send: seconds, or as in 500ms, 30s, 2m; without it, until stopped",
    ).pipe(Flag.optional),
    verify: Flag.Boolean("verify").pipe(
      Flag.withDefault(false),
      Flag.withDescription("read the logs back, all along and completely at the end"),
    ),
    timeout: duration("timeout", "how long to go on without any answer").pipe(Flag.withDefault(Duration.seconds(120))),
    json: Flag.Boolean("json").pipe(
      Flag.withDefault(false),
      Flag.withDescription("print lines of JSON, as is done where the output is no terminal"),
    ),
  },
  Effect.fnUntraced(function* (given) {
    const { firstId, objects, size, timeout, verify } = given
    // What was sent is still verified after a signal, which may take minutes.
    endInOwnTime()
    if (firstId + BigInt(objects) - 1n > ObjectId.max) {
      return yield* new ClientFailed({
        reason: `--first-id: the last of ${objects} objects would be beyond ${ObjectId.max}`,
      })
    }
    const ratePerSecond = Option.getOrUndefined(given.rate) ?? (yield* queriesPerMinute) / 60
    const servers = yield* serversFor
    const stdio = yield* Stdio.Stdio
    const terminal = yield* stdio.stdoutIsTerminal
    const style = terminal && !given.json ? "text" : "json"
    const options: LoadOptions = {
      ...servers,
      run: newRun(),
      ratePerSecond,
      objects,
      firstId,
      size,
      durationMillis: Option.getOrUndefined(Option.map(given.duration, Duration.toMillis)),
      verify,
      timeoutMillis: Duration.toMillis(timeout),
      notice: (text) =>
        (style === "text" ? Effect.ignore(print(sameLine)) : Effect.void).pipe(
          Effect.andThen(complain(text)),
          Effect.provideService(Stdio.Stdio, stdio),
        ),
    }
    yield* Effect.scoped(
      Effect.gen(function* () {
        const load = yield* makeLoad(options)
        yield* runAndReport(load, style, terminal)
      }),
    )
  }),
).pipe(
  Command.withDescription("Send appends at a rate and verify what the service makes of them"),
  Command.withExamples([
    { command: "objectlog load --rate 100 --duration 30s --verify", description: "A check of a deployment" },
    { command: "objectlog load --rate 50000 --objects 1000 --duration 1m", description: "As much as it takes" },
  ]),
)
