/** Compares what became of each message with what must become of it. */
import type { Letter } from "../../src/letters/Letter.ts"
import { digest, headersDigest } from "./expect.ts"
import type { Sent } from "./Sent.ts"

/** An event as it was stored. */
export interface Body {
  readonly type: string
  readonly status: "ok" | "error"
  readonly idText: string | undefined
  readonly position?: number
  readonly seq?: number
  readonly timestamp?: number
  readonly duplicate?: boolean
  readonly request_id?: string
  readonly error?: { readonly code: string }
  readonly page?: number
  readonly last?: boolean
  readonly entries?: ReadonlyArray<{
    readonly position: number
    readonly seq: number
    readonly timestamp: number
    readonly log: string
  }>
}

/** An entry as a shard holds it; the log as a digest. */
export interface Row {
  readonly id: bigint
  readonly timestamp: bigint
  readonly position: number
  readonly log: string
}

type Tally = Map<string, Map<string, number>>

const count = (tally: Tally, kind: string, outcome: string) => {
  const row = tally.get(kind) ?? new Map<string, number>()
  tally.set(kind, row.set(outcome, (row.get(outcome) ?? 0) + 1))
}

interface Known {
  readonly events: ReadonlyMap<string, ReadonlyArray<Body>>
  readonly letters: ReadonlyMap<string, ReadonlyArray<Letter>>
  readonly rows: ReadonlyMap<number, Row>
  /** The entries that took an object's message id, by both. */
  readonly owners: ReadonlyMap<string, ReadonlyArray<number>>
}

const ownerKey = (id: bigint | undefined, messageId: string) => `${id} ${messageId}`

/** One refused message: one error event, one dead letter, no entry. */
const refusedProblem = (sent: Sent, known: Known): string | undefined => {
  const { expected, seq } = sent
  const { code, id, requestId } = expected.verdict
  const name = `${expected.subject} ${seq}`
  const events = known.events.get(name) ?? []
  const letters = known.letters.get(name) ?? []
  const [event] = events
  const [letter] = letters
  if (events.length !== 1 || letters.length !== 1) return `${events.length} events and ${letters.length} dead letters`
  if (event!.error?.code !== code) return `expected the event's code ${code}, got ${event!.error?.code}`
  if (event!.request_id !== requestId) return `the event has another request_id: ${event!.request_id}`
  if (event!.idText !== id?.toString()) return `the event has another id: ${event!.idText}`
  if (letter!.code !== code) return `expected the dead letter's code ${code}, got ${letter!.code}`
  if (letter!.missingParts > 0) return "the dead letter lacks a part"
  if (digest(letter!.payload) !== expected.payload) return "the dead letter has another payload"
  if (headersDigest(letter!.headers) !== expected.headers) return "the dead letter has other headers"
  if (expected.subject === "logs" && known.rows.has(seq!)) return "it is an entry all the same"
  return undefined
}

const appendedProblem = (sent: Sent, known: Known): string | undefined => {
  const { expected, seq } = sent
  const { id, requestId } = expected.verdict
  const events = known.events.get(`logs ${seq}`) ?? []
  const [event] = events
  if (events.length !== 1) return `${events.length} events`
  if (event!.status !== "ok") return `refused with ${event!.error?.code}`
  if (event!.request_id !== requestId) return `the event has another request_id: ${event!.request_id}`
  if (event!.idText !== id!.toString()) return `the event has another id: ${event!.idText}`
  const owners = expected.messageId === undefined ? [seq!] : known.owners.get(ownerKey(id, expected.messageId))!
  // Which of several with one message id becomes the entry depends on the workers' speed; exactly one does.
  const stored = owners.filter((owner) => known.rows.has(owner))
  if (stored.length !== 1) return `${stored.length} entries`
  const place = known.rows.get(stored[0]!)!
  if ((event!.duplicate === true) !== (stored[0] !== seq)) return "duplicate or not, the event says otherwise"
  if (event!.seq !== stored[0] || event!.position !== place.position) return "the event names another entry"
  if (event!.timestamp !== Number(place.timestamp / 1_000_000n)) return "the event has another timestamp"
  if (place.id !== id) return `it is in the log of object ${place.id}`
  if (stored[0] === seq && place.log !== expected.log) return "the entry has another text"
  return undefined
}

const readProblem = (sent: Sent, known: Known): string | undefined => {
  const { continues, from, id, limit, order, requestId, to } = sent.expected.verdict
  const pages = known.events.get(`query ${sent.seq}`) ?? []
  if (pages.some((page) => page.status !== "ok")) return `refused with ${pages[0]?.error?.code}`
  if (pages.some((page, at) => page.page !== at || page.last !== (at === pages.length - 1)) || pages.length === 0) {
    return `pages ${pages.map((page) => `${page.page}${page.last === true ? " (last)" : ""}`).join(", ")}`
  }
  if (pages.some((page) => page.request_id !== requestId || page.idText !== id!.toString()))
    return "another request_id or id"
  const entries = pages.flatMap((page) => page.entries!)
  if (entries.length > (limit ?? Infinity)) return `${entries.length} entries, the limit is ${limit}`
  let previous: (typeof entries)[number] | undefined
  for (const entry of entries) {
    const row = known.rows.get(entry.seq)
    if (row?.id !== id || row?.position !== entry.position || row?.log !== digest(JSON.stringify(entry.log))) {
      return `entry ${entry.seq} is not in the log like that`
    }
    if (entry.timestamp < (from ?? 0) || entry.timestamp >= (to ?? Infinity))
      return `entry ${entry.seq} is out of range`
    if (previous !== undefined) {
      const step = order === "position" ? entry.position - previous.position : entry.seq - previous.seq
      if (order === "desc" ? step >= 0 : step <= 0) return `entry ${entry.seq} is out of order`
    }
    previous = entry
  }
  if (limit === undefined && from === undefined && to === undefined && continues === false) {
    const positions = entries.map((entry) => entry.position).sort((a, b) => a - b)
    if (positions.some((position, at) => position !== at + 1)) return "the snapshot has gaps"
  }
  return undefined
}

/** Positions of each object are 1 … n, and an earlier message has an earlier timestamp. */
const logProblems = (rows: ReadonlyMap<number, Row>): ReadonlyArray<string> => {
  const positions = new Map<bigint, Array<number>>()
  let [last, problems] = [0n, [] as Array<string>]
  for (const [seq, row] of [...rows].sort(([a], [b]) => a - b)) {
    if (row.timestamp <= last) problems.push(`logs ${seq}: its timestamp is not later than that of the entry before`)
    last = row.timestamp
    positions.set(row.id, [...(positions.get(row.id) ?? []), row.position])
  }
  for (const [id, all] of positions) {
    const sorted = all.toSorted((a, b) => a - b)
    if (sorted.some((position, at) => position !== at + 1)) problems.push(`object ${id}: positions have gaps`)
  }
  return problems
}

/** Gives each stored message its outcome; whatever belongs to none is a problem too. */
export const checkAll = (
  sent: ReadonlyArray<Sent>,
  events: ReadonlyMap<string, ReadonlyArray<Body>>,
  letters: ReadonlyArray<Letter>,
  rows: ReadonlyMap<number, Row>,
) => {
  const lettersByName = Map.groupBy(letters, ({ stamp, subject }) => `${subject} ${stamp?.seq}`)
  const owners = new Map<string, Array<number>>()
  for (const { expected, seq } of sent) {
    const { messageId, verdict } = expected
    if (messageId === undefined || verdict.code !== undefined || seq === undefined) continue
    const key = ownerKey(verdict.id, messageId)
    owners.set(key, [...(owners.get(key) ?? []), seq])
  }
  const known: Known = { events, letters: lettersByName, rows, owners }
  const byPayload: Tally = new Map()
  const byHeaders: Tally = new Map()
  const problems: Array<string> = []
  const accounted = new Set<string>()
  for (const one of sent) {
    const { expected, reason, seq } = one
    const { headersKind, payloadKind, subject, verdict } = expected
    const name = `${subject} ${seq}`
    let outcome: string
    if (seq === undefined) outcome = `not stored: ${reason.replace(/\d+$/, "…")}`
    else {
      const problem =
        verdict.code !== undefined
          ? refusedProblem(one, known)
          : subject === "logs"
            ? appendedProblem(one, known)
            : readProblem(one, known)
      if (problem !== undefined) problems.push(`${name} (${payloadKind}; headers: ${headersKind}): ${problem}`)
      const duplicate = events.get(name)?.[0]?.duplicate === true
      outcome = verdict.code ?? (subject === "query" ? "read" : duplicate ? "duplicate" : "entry")
      if (accounted.has(name)) problems.push(`${name}: confirmed twice`)
      accounted.add(name)
    }
    count(byPayload, payloadKind, seq === undefined ? "not stored" : outcome)
    count(byHeaders, headersKind, outcome)
  }
  const stray = (what: string, names: Iterable<string>) => {
    for (const name of names) if (!accounted.has(name)) problems.push(`${name}: ${what} of nothing that was stored`)
  }
  stray("an event", events.keys())
  stray("a dead letter", lettersByName.keys())
  stray(
    "an entry",
    [...rows.keys()].map((seq) => `logs ${seq}`),
  )
  return { byPayload, byHeaders, problems: [...problems, ...logProblems(rows)] }
}
