/** `objectlog dead`: refused requests, to be looked at, retried, or dropped. */
import { jetstreamManager } from "@nats-io/jetstream"
import { Clock, Console, Effect, Option, Redacted, Schema, Stdio, Stream, Terminal } from "effect"
import { Argument, Command, Flag, Prompt } from "effect/cli"
import { type DeadLetters, type Letter, openDeadLetters } from "../broker/deadLetters.ts"
import { fromMillis } from "../domain/LogEntry.ts"
import * as ObjectId from "../domain/ObjectId.ts"
import { writeOut } from "./append.ts"
import { ClientFailed, connected } from "./Client.ts"
import { ageText, Counts, lettersText, letterJson, letterText, makeTable, objectOf, parseSpan } from "./letterText.ts"
import { parseTime } from "./query.ts"
import { serversFor } from "./servers.ts"

/** Some letters could not be worked on; each one's reason was printed when it came. */
export class LettersFailed extends Schema.TaggedError<LettersFailed>()("LettersFailed", {
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

const seqArgument = Argument.String("seq").pipe(
  Argument.withDescription(seqExpected),
  Argument.filterMap(parseSeq, () => seqExpected),
)

const seqArguments = seqArgument.pipe(Argument.variadic())

const text = (name: string, description: string) =>
  Flag.String(name).pipe(Flag.optional, Flag.withDescription(description))

const spanExpected = "a span of time as 90s, 15m, 2h or 7d"

const filterFlags = {
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
const opened = Effect.gen(function* () {
  const { deadTopic, servers } = yield* serversFor
  const connection = yield* connected(Redacted.value(servers))
  const jsm = yield* Effect.promise(() => jetstreamManager(connection, { checkAPI: false }))
  const letters = yield* openDeadLetters(connection, jsm, deadTopic)
  if (letters !== undefined) return letters
  return yield* new ClientFailed({
    reason: `no objectlog worker has ever been connected to this server: nothing stores the subject ${deadTopic}.>`,
  })
})

const chosen = (letters: DeadLetters, filters: Filters, now: number) => {
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

// --- Commands

const jsonFlag = Flag.Boolean("json").pipe(
  Flag.withDefault(false),
  Flag.withDescription("print lines of JSON; without a terminal that is the default"),
)

const listCommand = Command.make(
  "list",
  {
    ...filterFlags,
    counts: Flag.Boolean("counts").pipe(
      Flag.withDefault(false),
      Flag.withDescription("print only how many there are of each code"),
    ),
    json: jsonFlag,
  },
  Effect.fnUntraced(function* ({ counts: countsOnly, json: jsonWanted, ...filters }) {
    const stdio = yield* Stdio.Stdio
    const json = jsonWanted || !(yield* stdio.stdoutIsTerminal)
    const columns = yield* (yield* Terminal.Terminal).columns
    const now = yield* Clock.currentTimeMillis
    const letters = yield* opened
    const counts = new Counts()
    const table = makeTable(now, columns)
    const texts = chosen(letters, filters, now).pipe(
      Stream.mapArray((chunk) => {
        for (const letter of chunk) counts.add(letter)
        if (countsOnly) return [""] as const
        return [json ? chunk.map((letter) => letterJson(letter, false)).join("") : table(chunk)] as const
      }),
    )
    const ending = Stream.suspend(() => {
      if (!json) return Stream.make(countsOnly ? countsText(counts, now) : `${counts.summary(now)}\n`)
      return countsOnly ? Stream.fromIterable(counts.all().map((one) => `${JSON.stringify(one)}\n`)) : Stream.empty
    })
    yield* writeOut(Stream.concat(texts, ending).pipe(Stream.filter((out) => out !== "")))
  }, Effect.scoped),
).pipe(
  Command.withDescription("List dead letters, oldest first"),
  Command.withExamples([
    { command: "objectlog dead list --since 1d --code invalid_json", description: "Of one kind, since yesterday" },
    { command: "objectlog dead list --counts", description: "How many of each code, and how old" },
  ]),
)

const countsText = (counts: Counts, now: number): string => {
  const rows = counts
    .all()
    .map(({ code, letters, newest, oldest }) => [String(letters), ageText(now - oldest), ageText(now - newest), code])
  if (rows.length === 0) return "no dead letters\n"
  return [["LETTERS", "OLDEST", "NEWEST", "CODE"], ...rows]
    .map((row) => `${row.map((cell, at) => (at < 3 ? cell.padStart(at === 0 ? 8 : 6) : cell)).join("  ")}\n`)
    .join("")
}

const missing = (seq: number) => `dead letter ${seq}: there is none of that number`

const showCommand = Command.make(
  "show",
  {
    seq: seqArgument,
    raw: Flag.Boolean("raw").pipe(
      Flag.withDefault(false),
      Flag.withDescription("write the payload of the request, byte for byte, and nothing else"),
    ),
    json: Flag.Boolean("json").pipe(Flag.withDefault(false), Flag.withDescription("print it as a line of JSON")),
  },
  Effect.fnUntraced(function* ({ json, raw, seq }) {
    const letters = yield* opened
    const [letter] = yield* letters.find([seq])
    if (letter === undefined) return yield* new ClientFailed({ reason: missing(seq) })
    if (raw && letter.missingParts > 0) {
      return yield* new ClientFailed({ reason: `dead letter ${seq}: ${letter.missingParts} of its parts are missing` })
    }
    const now = yield* Clock.currentTimeMillis
    yield* writeOut(Stream.make(raw ? letter.payload : json ? letterJson(letter, true) : letterText(letter, now)))
  }, Effect.scoped),
).pipe(
  Command.withDescription("Show a dead letter: the reason, and the request with its headers"),
  Command.withExamples([
    { command: "objectlog dead show 12 --raw > request.json", description: "The request as sent" },
  ]),
)

/** Letters by their numbers, or all that the filters choose; never both. */
const selected = Effect.fnUntraced(function* (
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
const workOn = Effect.fnUntraced(function* <R>(
  found: Stream.Stream<Letter, unknown>,
  absent: ReadonlyArray<number>,
  done: string,
  work: (letter: Letter) => Effect.Effect<void, { readonly message: string }, R>,
) {
  let [worked, failed] = [0, absent.length]
  yield* Effect.forEach(absent, (seq) => Console.error(`objectlog: ${missing(seq)}`), { discard: true })
  const each = (letter: Letter) =>
    work(letter).pipe(
      Effect.tap(() => Effect.sync(() => worked++)),
      Effect.catch((error) => {
        failed++
        return Console.error(`objectlog: dead letter ${letter.seq}: ${error.message}`)
      }),
    )
  yield* found.pipe(Stream.mapEffect(each, { concurrency: workedAtOnce, unordered: true }), Stream.runDrain)
  yield* Console.log(`${lettersText(worked)} ${done}`)
  if (failed > 0) return yield* new LettersFailed({ failed, letters: worked + failed, done })
})

const allFlag = Flag.Boolean("all").pipe(
  Flag.withDefault(false),
  Flag.withDescription("all of them, or all that the filters choose"),
)

const dropCommand = Command.make(
  "drop",
  {
    seqs: seqArguments,
    all: allFlag,
    yes: Flag.Boolean("yes").pipe(Flag.withDefault(false), Flag.withDescription("don't ask before --all")),
    ...filterFlags,
  },
  Effect.fnUntraced(function* ({ all, seqs, yes, ...filters }) {
    const letters = yield* opened
    const { absent, found } = yield* selected(letters, { seqs, all, filters })
    let last = Number.MAX_SAFE_INTEGER
    if (all && !yes) {
      const stdio = yield* Stdio.Stdio
      if (!(yield* stdio.stdinIsTerminal)) {
        return yield* new ClientFailed({ reason: "--yes: is required to drop --all without a terminal to ask on" })
      }
      const counts = new Counts()
      yield* Stream.runForEach(found, (letter) =>
        Effect.sync(() => {
          counts.add(letter)
          last = letter.seq
        }),
      )
      if (counts.letters === 0) return yield* Console.log("no dead letters")
      const summary = counts.summary(yield* Clock.currentTimeMillis)
      if (!(yield* Prompt.run(Prompt.Confirm({ message: `Drop ${summary}?` })))) return
    }
    // Nothing that came after the question.
    const asked = Stream.filter(found, (letter) => letter.seq <= last)
    yield* workOn(asked, absent, "dropped", letters.remove)
  }, Effect.scoped),
).pipe(
  Command.withDescription("Delete dead letters for good"),
  Command.withExamples([
    { command: "objectlog dead drop 12 13", description: "Two of them" },
    { command: "objectlog dead drop --all --older-than 30d --yes", description: "The old ones, without a question" },
  ]),
)

/** `objectlog dead` */
export const deadCommand = Command.make("dead").pipe(
  Command.withDescription("Work the dead letters: requests that were refused, kept with their reasons"),
  Command.withSubcommands([listCommand, showCommand, dropCommand]),
)
