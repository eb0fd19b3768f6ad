/** `objectlog dead`: refused requests, to be looked at, retried, or dropped. */
import { Clock, Effect, FileSystem, Option, Stdio, Stream, Terminal } from "effect"
import { Command, Flag, Prompt } from "effect/cli"
import { reasonText } from "../embedded/systemError.ts"
import { ClientFailed } from "../client/connection.ts"
import { chosen, filterFlags, missing, opened, selected, seqArgument, seqArguments, workOn } from "./letters.ts"
import { ageText, Counts, letterJson, letterText, makeTable } from "./letterText.ts"
import { standardInput } from "./input.ts"
import { print, printAll, printLine } from "./output.ts"
import { escapeLog, jsonLine } from "./terminal.ts"

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
    const terminal = yield* stdio.stdoutIsTerminal
    const json = jsonWanted || !terminal
    const columns = yield* (yield* Terminal.Terminal).columns
    const now = yield* Clock.currentTimeMillis
    const letters = yield* opened
    const counts = new Counts()
    const table = makeTable(now, columns)
    const texts = chosen(letters, filters, now).pipe(
      Stream.mapArray((chunk) => {
        for (const letter of chunk) counts.add(letter)
        if (countsOnly) return [""] as const
        return [json ? chunk.map((letter) => letterJson(letter, false, terminal)).join("") : table(chunk)] as const
      }),
    )
    const ending = Stream.suspend(() => {
      if (!json) return Stream.make(countsOnly ? countsText(counts, now) : `${counts.summary(now)}\n`)
      return countsOnly
        ? Stream.fromIterable(counts.all().map((one) => `${jsonLine(JSON.stringify(one), terminal)}\n`))
        : Stream.empty
    })
    yield* printAll(Stream.concat(texts, ending).pipe(Stream.filter((out) => out !== "")))
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
    .map(({ code, letters, newest, oldest }) => [
      String(letters),
      ageText(now - oldest),
      ageText(now - newest),
      escapeLog(code, true),
    ])
  if (rows.length === 0) return "no dead letters\n"
  return [["LETTERS", "OLDEST", "NEWEST", "CODE"], ...rows]
    .map((row) => `${row.map((cell, at) => (at < 3 ? cell.padStart(at === 0 ? 8 : 6) : cell)).join("  ")}\n`)
    .join("")
}

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
    const terminal = yield* (yield* Stdio.Stdio).stdoutIsTerminal
    yield* print(raw ? letter.payload : json ? letterJson(letter, true, terminal) : letterText(letter, now))
  }, Effect.scoped),
).pipe(
  Command.withDescription("Show a dead letter: the reason, and the request with its headers"),
  Command.withExamples([
    { command: "objectlog dead show 12 --raw > request.json", description: "The request as sent" },
  ]),
)

const allFlag = Flag.Boolean("all").pipe(
  Flag.withDefault(false),
  Flag.withDescription("all of them, or all that the filters choose"),
)

/** `-` is standard input. */
const readPayload = Effect.fnUntraced(function* (file: string) {
  const fs = yield* FileSystem.FileSystem
  if (file === "-") return Buffer.concat(yield* Stream.runCollect(standardInput))
  return yield* Effect.mapError(
    fs.readFile(file),
    (error) => new ClientFailed({ reason: `--payload: ${file}: ${reasonText(error)}` }),
  )
})

const retryCommand = Command.make(
  "retry",
  {
    seqs: seqArguments,
    all: allFlag,
    payload: Flag.String("payload").pipe(
      Flag.withDescription("a file with the payload to process in place of the refused one; - is standard input"),
      Flag.optional,
    ),
    ...filterFlags,
  },
  Effect.fnUntraced(function* ({ all, payload: file, seqs, ...filters }) {
    if (Option.isSome(file) && (all || seqs.length !== 1)) {
      return yield* new ClientFailed({ reason: "--payload: is for one dead letter, given by its number" })
    }
    const payload = Option.isSome(file) ? yield* readPayload(file.value) : undefined
    const letters = yield* opened
    const { absent, found } = yield* selected(letters, { seqs, all, filters })
    yield* workOn(found, absent, "retried", (letter) => letters.retry(letter, payload))
  }, Effect.scoped),
).pipe(
  Command.withDescription("Have refused requests processed again, with their original time and identity"),
  Command.withExamples([
    {
      command: "objectlog dead retry --all --code entry_rejected",
      description: "All of a kind, once its cause is gone",
    },
    { command: "objectlog dead retry 12 --payload request.json", description: "One of them, corrected" },
  ]),
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
      if (counts.letters === 0) return yield* printLine("no dead letters")
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
  Command.withSubcommands([listCommand, showCommand, retryCommand, dropCommand]),
)
