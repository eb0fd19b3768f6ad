/** `objectlog append`: one append, or one for each line of standard input. */
import { Duration, Effect, Option, Redacted, Result, Schema, Stdio, Stream } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import * as ObjectId from "../contract/ObjectId.ts"
import { messageIdProblem } from "../contract/Request.ts"
import { type Appended, Client, RequestRefused } from "../client/Client.ts"
import { ClientFailed } from "../client/connection.ts"
import type { Append } from "../contract/Request.ts"
import { type InputInvalid, lines, standardInput } from "./input.ts"
import { complain, print } from "./output.ts"
import { serversFor } from "./servers.ts"
import { jsonLine } from "./terminal.ts"

/** Some of several appends were refused; each one's reason was printed when it came. */
class AppendsRefused extends Schema.TaggedError<AppendsRefused>()("AppendsRefused", {
  refused: Schema.Int,
  appends: Schema.Int,
}) {
  override get message(): string {
    return `${this.refused} of ${this.appends} appends ${this.refused === 1 ? "was" : "were"} refused`
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

/** One outcome for a person. */
const appendedText = (appended: Appended): string =>
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
    const terminal = yield* (yield* Stdio.Stdio).stdoutIsTerminal
    const input: Stream.Stream<Append, InputInvalid, Stdio.Stdio> = several
      ? Stream.map(lines(standardInput), (log) => ({ id, log }))
      : Stream.make({ id, log: text, messageId: key })
    yield* Effect.gen(function* () {
      const client = yield* Client
      let [appends, refused] = [0, 0]
      let only: RequestRefused | undefined
      const outcomeText = Effect.fnUntraced(function* (outcome: Result.Result<Appended, RequestRefused>) {
        appends += 1
        const event = ({ event }: { readonly event: string }) => `${jsonLine(event, terminal)}\n`
        if (Result.isSuccess(outcome)) return json ? event(outcome.success) : appendedText(outcome.success)
        refused += 1
        only = outcome.failure
        if (several) yield* complain(`line ${appends}: ${outcome.failure.message}`)
        return json ? event(outcome.failure) : ""
      })
      // A reader that closed standard output ends the printing, not the appending: what was read must be answered.
      let read = true
      yield* client.append(input).pipe(
        Stream.mapEffect(outcomeText),
        Stream.mapArray((texts) => [texts.join("")] as const),
        Stream.runForEach((out) =>
          read && out !== "" ? Effect.map(print(out), (isRead) => void (read = isRead)) : Effect.void,
        ),
        Effect.mapError((error) =>
          several && error instanceof ClientFailed
            ? new ClientFailed({ reason: `after ${appends} lines that were answered: ${error.reason}` })
            : error,
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
