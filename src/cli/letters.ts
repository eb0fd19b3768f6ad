/** What the commands of `objectlog dead` share: which letters, and what is done with each. */
import { jetstreamManager } from "@nats-io/jetstream"
import { Clock, Effect, Option, Redacted, Schema, Stream } from "effect"
import { Argument, Flag } from "effect/cli"
import { type DeadLetters, openDeadLetters } from "../letters/deadLetters.ts"
import type { Letter } from "../letters/Letter.ts"
import { fromMillis } from "../contract/LogEntry.ts"
import * as ObjectId from "../contract/ObjectId.ts"
import { ClientFailed, connected } from "../client/connection.ts"
import { lettersText, objectOf, parseSpan } from "./letterText.ts"
import { complain, printLine } from "./output.ts"
import { parseTime } from "./query.ts"
import { serversFor } from "./servers.ts"

/** Some letters could not be worked on; each one's reason was printed when it came. */
class LettersFailed extends Schema.TaggedError<LettersFailed>()("LettersFailed", {
  failed: Schema.Int,
  letters: Schema.Int,
  done: Schema.String,
}) {
  override get message(): string {
    return `${this.failed} of ${lettersText(this.letters)} ${this.failed === 1 ? "was" : "were"} not ${this.done}`
  }
}

// --- Arguments

const seqExpected = "the number of a dead letter, as in the first column of the list"

const parseSeq = (text: string) => (/^[1-9]\d{0,14}$/.test(text) ? Option.some(Number(text)) : Option.none())

export const seqArgument = Argument.String("seq").pipe(
  Argument.withDescription(seqExpected),
  Argument.filterMap(parseSeq, () => seqExpected),
)

export const seqArguments = seqArgument.pipe(Argument.variadic())

const text = (name: string, description: string) =>
  Flag.String(name).pipe(Flag.optional, Flag.withDescription(description))

const spanExpected = "a span of time as 90s, 15m, 2h or 7d"

export const filterFlags = {
  code: text("code", "only those with this error code"),
  subject: text("subject", "only those of requests on this subject"),
  id: Flag.String("id").pipe(
    Flag.withDescription("only those of this object, where the request says so legibly"),
    Flag.filterMap(
      (given) => Option.fromNullishOr(ObjectId.fromDecimal(given)),
      () => ObjectId.expected,
    ),
    Flag.optional,
  ),
  since: Flag.String("since").pipe(
    Flag.withDescription("only those refused since: a span of time as 2h, Unix milliseconds, or ISO 8601"),
    Flag.filter(
      (given) => parseSpan(given) !== undefined || parseTime(given) !== undefined,
      () => `${spanExpected}, Unix milliseconds, or an ISO 8601 time`,
    ),
    Flag.optional,
  ),
  olderThan: Flag.String("older-than").pipe(
    Flag.withDescription("only those refused longer ago, as 7d"),
    Flag.filterMap(
      (given) => Option.fromNullishOr(parseSpan(given)),
      () => spanExpected,
    ),
    Flag.optional,
  ),
  limit: Flag.Int("limit").pipe(
    Flag.withDescription("at most so many, oldest first"),
    Flag.filter(
      (count) => Number.isSafeInteger(count) && count >= 1,
      () => "an integer from 1",
    ),
    Flag.optional,
  ),
}

interface Filters {
  readonly code: Option.Option<string>
  readonly subject: Option.Option<string>
  readonly id: Option.Option<ObjectId.ObjectId>
  readonly since: Option.Option<string>
  readonly olderThan: Option.Option<number>
  readonly limit: Option.Option<number>
}

const isGiven = (filters: Filters): boolean => Object.values(filters).some((filter) => Option.isSome(filter))

// --- The letters

/** The dead letters of the server that `append` and `query` would use. */
export const opened = Effect.gen(function* () {
  const { servers, ...subjects } = yield* serversFor
  const { connection } = yield* connected(Redacted.value(servers))
  const jsm = yield* Effect.promise(() => jetstreamManager(connection, { checkAPI: false }))
  const letters = yield* openDeadLetters(connection, jsm, subjects)
  if (letters !== undefined) return letters
  return yield* new ClientFailed({
    reason: `no objectlog worker has ever been connected to this server: nothing stores the subject ${subjects.deadTopic}.>`,
  })
})

export const chosen = (letters: DeadLetters, filters: Filters, now: number) => {
  const since = Option.map(filters.since, (given) => {
    const span = parseSpan(given)
    return fromMillis(span === undefined ? parseTime(given)! : Math.max(0, now - span))
  })
  const before = Option.map(filters.olderThan, (span) => fromMillis(Math.max(0, now - span)))
  const is = <A>(wanted: Option.Option<A>, value: A | undefined) => Option.isNone(wanted) || wanted.value === value
  return letters.read({ subject: Option.getOrUndefined(filters.subject), since: Option.getOrUndefined(since) }).pipe(
    Stream.filter(
      (letter) =>
        is(filters.code, letter.code) &&
        (Option.isNone(before) || letter.refusedAt < before.value) &&
        (Option.isNone(filters.id) || is(filters.id, objectOf(letter))),
    ),
    Stream.take(Option.getOrElse(filters.limit, () => Number.MAX_SAFE_INTEGER)),
  )
}

export const missing = (seq: number) => `dead letter ${seq}: there is none of that number`

/** Letters by their numbers, or all that the filters choose; never both. */
export const selected = Effect.fnUntraced(function* (
  letters: DeadLetters,
  { all, filters, seqs }: { readonly seqs: ReadonlyArray<number>; readonly all: boolean; readonly filters: Filters },
) {
  if (!all && isGiven(filters)) return yield* new ClientFailed({ reason: "--all: filters choose among all, so add it" })
  if (all === seqs.length > 0) {
    return yield* new ClientFailed({ reason: "expected the numbers of dead letters, or --all" })
  }
  if (all) {
    const now = yield* Clock.currentTimeMillis
    return { found: chosen(letters, filters, now), absent: [] }
  }
  const found = yield* letters.find(seqs)
  const absent = seqs.filter((seq) => !found.some((letter) => letter.seqs.includes(seq)))
  return { found: Stream.fromIterable(found), absent }
})

/** Letters that are worked on at the same time. */
const workedAtOnce = 16

/** Does something with each letter; what fails is said at once, and ends in one error. */
export const workOn = Effect.fnUntraced(function* <R>(
  found: Stream.Stream<Letter, unknown>,
  absent: ReadonlyArray<number>,
  done: string,
  work: (letter: Letter) => Effect.Effect<void, { readonly message: string }, R>,
) {
  let [worked, failed] = [0, absent.length]
  yield* Effect.forEach(absent, (seq) => complain(missing(seq)), { discard: true })
  const each = (letter: Letter) =>
    work(letter).pipe(
      Effect.tap(() => Effect.sync(() => worked++)),
      Effect.catch((error) => {
        failed++
        return complain(`dead letter ${letter.seq}: ${error.message}`)
      }),
    )
  yield* found.pipe(Stream.mapEffect(each, { concurrency: workedAtOnce, unordered: true }), Stream.runDrain)
  yield* printLine(`${lettersText(worked)} ${done}`)
  if (failed > 0) return yield* new LettersFailed({ failed, letters: worked + failed, done })
})
