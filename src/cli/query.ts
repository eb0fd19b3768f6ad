/** `objectlog query`: prints the log of an object. */
import { Effect, Option, Stdio, Stream } from "effect"
import { Command, Flag } from "effect/cli"
import { clientFor, idArgument, timeoutFlag } from "./append.ts"
import { Client } from "../client/Client.ts"
import { ClientFailed } from "../client/connection.ts"
import type { Entry } from "../contract/Event.ts"
import { printAll, tell } from "./output.ts"
import { escapeLog, jsonLine } from "./terminal.ts"

const isoTime =
  /^(\d{4})-(\d{2})(?:-(\d{2})(?:[T ]\d{2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?(Z|[+-]\d{2}(?::?\d{2})?)?)?)?$/i

/**
 * A point in time as Unix milliseconds: digits are milliseconds, all else ISO 8601. Without an offset it is UTC, as in
 * what the command prints. `undefined` for anything else, also for a day that the month does not have.
 */
export const parseTime = (text: string): number | undefined => {
  if (/^\d{1,16}$/.test(text)) {
    const millis = Number(text)
    return Number.isSafeInteger(millis) ? millis : undefined
  }
  const match = isoTime.exec(text)
  if (match === null) return undefined
  const [, year, month, day = "01", offset] = match
  if (Number(day) < 1 || Number(day) > new Date(Date.UTC(Number(year), Number(month), 0)).getUTCDate()) return undefined
  let canonical = text.toUpperCase().replace(" ", "T").replace(",", ".")
  if (canonical.includes("T") && offset === undefined) canonical += "Z"
  // `Date.parse` knows offsets only as +hh:mm.
  canonical = canonical.replace(
    /(T.*[+-]\d{2}):?(\d{2})?$/,
    (_, hours: string, minutes?: string) => `${hours}:${minutes ?? "00"}`,
  )
  const millis = Date.parse(canonical)
  return Number.isNaN(millis) || millis < 0 ? undefined : millis
}

/** One entry for a person. */
export const entryText = (entry: Entry, terminal: boolean): string =>
  `${new Date(entry.timestamp).toISOString()}  ${escapeLog(entry.log, terminal)}\n`

/** One entry as a line of JSON. */
const entryJson = ({ log, position, seq, timestamp }: Entry, terminal: boolean): string =>
  `${jsonLine(JSON.stringify({ position, seq, timestamp, log }), terminal)}\n`

const timeFlag = (name: string, description: string) =>
  Flag.String(name).pipe(
    Flag.withDescription(`${description}: Unix milliseconds or ISO 8601 (UTC unless it has an offset)`),
    Flag.filterMap(
      (text) => Option.fromNullishOr(parseTime(text)),
      () => "Unix milliseconds or an ISO 8601 time from 1970 on",
    ),
    Flag.optional,
  )

const countFlag = (name: string, minimum: number, description: string) =>
  Flag.Int(name).pipe(
    Flag.withDescription(description),
    Flag.filter(
      (count) => Number.isSafeInteger(count) && count >= minimum,
      () => `an integer from ${minimum}`,
    ),
    Flag.optional,
  )

/** `objectlog query ID` */
export const queryCommand = Command.make(
  "query",
  {
    id: idArgument,
    limit: countFlag("limit", 1, "at most so many entries"),
    from: timeFlag("from", "entries at or after this time"),
    to: timeFlag("to", "entries before this time"),
    order: Flag.Literals("order", ["asc", "desc"]).pipe(
      Flag.optional,
      Flag.withDescription("asc: oldest first, the default; desc: newest first"),
    ),
    after: Flag.String("after").pipe(Flag.optional, Flag.withDescription("goes on at the cursor of an earlier read")),
    afterPosition: countFlag("after-position", 0, "everything after this position, in the order of commit"),
    json: Flag.Boolean("json").pipe(
      Flag.withDefault(false),
      Flag.withDescription("print each entry as a line of JSON"),
    ),
    timeout: timeoutFlag,
  },
  Effect.fnUntraced(function* ({ id, json, timeout, ...given }) {
    const read = {
      id,
      limit: Option.getOrUndefined(given.limit),
      from: Option.getOrUndefined(given.from),
      to: Option.getOrUndefined(given.to),
      order: Option.getOrUndefined(given.order),
      after: Option.getOrUndefined(given.after),
      afterPosition: Option.getOrUndefined(given.afterPosition),
    }
    if (read.after !== undefined && read.afterPosition !== undefined) {
      return yield* new ClientFailed({ reason: "--after-position: can't be combined with --after" })
    }
    if (read.afterPosition !== undefined && read.order === "desc") {
      return yield* new ClientFailed({ reason: "--after-position: reads in commit order, so --order can't be desc" })
    }
    const layer = yield* clientFor(timeout)
    const stdio = yield* Stdio.Stdio
    const terminal = yield* stdio.stdoutIsTerminal
    let next: string | undefined
    yield* Effect.gen(function* () {
      const client = yield* Client
      yield* printAll(
        client.query(read).pipe(
          Stream.map((page) => {
            next = page.next
            return page.entries.map((entry) => (json ? entryJson : entryText)(entry, terminal)).join("")
          }),
          Stream.filter((text) => text !== ""),
        ),
      )
    }).pipe(Effect.provide(layer))
    if (next !== undefined) yield* tell(`more: --after ${next}`)
  }),
).pipe(
  Command.withDescription("Print the log of an object"),
  Command.withExamples([
    { command: "objectlog query 42 --order desc --limit 20", description: "The newest 20 entries" },
    { command: "objectlog query 42 --from 2026-11-23 --json", description: "All since a day, as lines of JSON" },
  ]),
)
