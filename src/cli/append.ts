/** `objectlog append`: one append, or one for each line of standard input. */
import { Console, Duration, Effect, Option, Redacted, Result, Schema, Stdio, Stream } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import * as ObjectId from "../domain/ObjectId.ts"
import { messageIdProblem } from "../domain/Protocol.ts"
import { type Append, type Appended, Client, ClientFailed, RequestRefused } from "./Client.ts"
import { serversFor } from "./servers.ts"

/** Some of several appends were refused; each one's reason was printed when it came. */
export class AppendsRefused extends Schema.TaggedError<AppendsRefused>()("AppendsRefused", {
  refused: Schema.Int,
  appends: Schema.Int,
}) {
  override get message(): string {
    return `${this.refused} of ${this.appends} appends ${this.refused === 1 ? "was" : "were"} refused`
  }
}

/** Standard input can't be appended as it is. */
export class InputInvalid extends Schema.TaggedError<InputInvalid>()("InputInvalid", { reason: Schema.String }) {
  override get message(): string {
    return `standard input: ${this.reason}`
  }
}

/** The argument ID, checked before anything is sent. */
export const idArgument = Argument.String("id").pipe(
  Argument.withDescription(`the object: ${ObjectId.expected}`),
  Argument.filterMap(
    (text) => Option.fromNullishOr(ObjectId.fromDecimal(text)),
    () => ObjectId.expected,
  ),
)

const durationUnits = { ms: 1, s: 1_000, m: 60_000 } as const

/** Reads `30`, `30s`, `500ms` or `2m`; a plain number is seconds. */
export const parseTimeout = (text: string): Duration.Duration | undefined => {
  const match = /^(\d{1,6}(?:\.\d{1,3})?)(ms|s|m)?$/.exec(text)
  if (match === null) return undefined
  const millis = Number(match[1]) * durationUnits[(match[2] ?? "s") as keyof typeof durationUnits]
  return millis >= 1 ? Duration.millis(millis) : undefined
}

export const timeoutFlag = Flag.String("timeout").pipe(
  Flag.withDefault("30s"),
  Flag.withDescription("how long to wait without any answer: seconds, or with a unit as in 500ms, 30s, 2m"),
  Flag.filterMap(
    (text) => Option.fromNullishOr(parseTimeout(text)),
    () => "seconds, or a time as 500ms, 30s or 2m",
  ),
)

/** The client of a command: the servers of the environment, one connection. */
export const clientFor = (timeout: Duration.Duration) =>
  Effect.map(serversFor, ({ servers, logsTopic, queryTopic }) =>
    Client.layer({ servers: Redacted.value(servers), logsTopic, queryTopic, timeout }),
  )

/**
 * Writes texts to standard output and waits whenever it is full. A reader that closed it has read enough: that is the
 * end, and no failure.
 */
export const writeOut = <E, R>(texts: Stream.Stream<string | Uint8Array, E, R>) =>
  Effect.gen(function* () {
    const stdio = yield* Stdio.Stdio
    yield* Stream.run(texts, stdio.stdout()).pipe(
      Effect.catchIf(
        (error) => isBrokenPipe(error),
        () => Effect.void,
      ),
    )
  })

const isBrokenPipe = (error: unknown): boolean => {
  for (let at = error; typeof at === "object" && at !== null;) {
    if ("code" in at && (at.code === "EPIPE" || at.code === "ERR_STREAM_DESTROYED")) return true
    at = "reason" in at ? at.reason : "cause" in at ? at.cause : undefined
  }
  return false
}

/** No server takes a message that is longer; so long a line would only fill the memory. */
const lineMax = 64 * 1024 * 1024

/**
 * The lines of a byte stream, each when it is complete. Only `\n` ends a line: what was sent is what comes back. A final
 * `\n` ends the last line and adds none.
 */
export const lines = <E, R>(bytes: Stream.Stream<Uint8Array, E, R>): Stream.Stream<string, E | InputInvalid, R> =>
  Stream.suspend(() => {
    const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
    let held: Array<string> = []
    let heldLength = 0
    let number = 1
    const take = (chunk: Uint8Array | undefined): Effect.Effect<ReadonlyArray<string>, InputInvalid> => {
      let text: string
      try {
        text = chunk === undefined ? decoder.decode() : decoder.decode(chunk, { stream: true })
      } catch {
        return Effect.fail(new InputInvalid({ reason: `bytes at or after line ${number} are not UTF-8` }))
      }
      const parts = text.split("\n")
      const rest = parts.pop()!
      if (parts.length > 0) {
        parts[0] = held.join("") + parts[0]!
        held = []
        heldLength = 0
        number += parts.length
      }
      if (rest !== "") held.push(rest)
      heldLength += rest.length
      if (heldLength > lineMax) return Effect.fail(new InputInvalid({ reason: `line ${number} has no end` }))
      if (chunk === undefined && heldLength > 0) parts.push(held.join(""))
      return Effect.succeed(parts)
    }
    return bytes.pipe(
      Stream.mapEffect(take),
      Stream.concat(Stream.fromEffect(Effect.suspend(() => take(undefined)))),
      Stream.flatMap((parts) => Stream.fromIterable(parts)),
    )
  })

/** One outcome for a person. */
export const appendedText = (appended: Appended): string =>
  `position ${appended.position}  ${new Date(appended.timestamp).toISOString()}${appended.duplicate ? "  duplicate" : ""}\n`

/** `objectlog append ID TEXT` */
export const appendCommand = Command.make(
  "append",
  {
    id: idArgument,
    text: Argument.String("text").pipe(
      Argument.withDescription(
        "the log text; - appends each line of standard input. After -- it may begin with a dash",
      ),
    ),
    messageId: Flag.String("message-id").pipe(
      Flag.optional,
      Flag.withDescription(
        "Nats-Msg-Id: a second append of the object with the same one is not made (one append only)",
      ),
    ),
    timeout: timeoutFlag,
    json: Flag.Boolean("json").pipe(
      Flag.withDefault(false),
      Flag.withDescription("print each response event as a line of JSON"),
    ),
  },
  Effect.fnUntraced(function* ({ id, text, messageId, timeout, json }) {
    const several = text === "-"
    const key = Option.getOrUndefined(messageId)
    if (key !== undefined) {
      // A header value ends at a line break and has no white space around it, and an empty one is no key.
      const problem = several
        ? "--message-id: names one append, and - makes several"
        : key === "" || key !== key.trim() || /[\r\n]/.test(key)
          ? "--message-id: expected a text in one line, without white space around it"
          : messageIdProblem(key)
      if (problem !== undefined) return yield* new ClientFailed({ reason: problem })
    }
    const layer = yield* clientFor(timeout)
    const stdio = yield* Stdio.Stdio
    const input: Stream.Stream<Append, InputInvalid> = several
      ? lines(stdio.stdin).pipe(
          Stream.catchTag("PlatformError", (error) => Stream.fail(new InputInvalid({ reason: error.message }))),
          Stream.map((log) => ({ id, log })),
        )
      : Stream.make({ id, log: text, messageId: key })
    yield* Effect.gen(function* () {
      const client = yield* Client
      let [appends, refused] = [0, 0]
      let only: RequestRefused | undefined
      const print = Effect.fnUntraced(function* (outcome: Result.Result<Appended, RequestRefused>) {
        appends += 1
        if (Result.isSuccess(outcome)) return json ? `${outcome.success.event}\n` : appendedText(outcome.success)
        refused += 1
        only = outcome.failure
        if (several) yield* Console.error(`objectlog: line ${appends}: ${outcome.failure.message}`)
        return json ? `${outcome.failure.event}\n` : ""
      })
      // A reader that closed standard output ends the printing, not the appending: what was read must be answered.
      let closed = false
      yield* client.append(input).pipe(
        Stream.mapEffect(print),
        Stream.mapArray((texts) => [texts.join("")] as const),
        Stream.runForEach((out) =>
          closed || out === ""
            ? Effect.void
            : Stream.run(Stream.make(out), stdio.stdout()).pipe(
                Effect.catchIf(isBrokenPipe, () =>
                  Effect.sync(() => {
                    closed = true
                  }),
                ),
              ),
        ),
      )
      if (only === undefined) return
      if (!several) return yield* only
      return yield* new AppendsRefused({ refused, appends })
    }).pipe(Effect.provide(layer))
  }),
).pipe(
  Command.withDescription("Append a text to the log of an object, or each line of standard input"),
  Command.withExamples([
    { command: 'objectlog append 42 "disk 3 replaced"', description: "One append" },
    { command: "objectlog append 42 - < notes.txt", description: "One append for each line" },
  ]),
)
