/** What must be true in the end: the databases, the events and the dead letters against what the broker has stored. */
import { Effect, Schedule } from "effect"
import { fromStored } from "../../src/contract/LogEntry.ts"
import { toColumn } from "../../src/contract/ObjectId.ts"
import { ObjectId } from "../../src/contract/ObjectId.ts"
import { type Append, type Ledger, type ObjectRecord, placeOf, textOf } from "./Ledger.ts"
import { onShard } from "../../bench/servers/onShard.ts"
import type { TestShards } from "./TestShards.ts"

/** An entry as its database has it. */
export interface Row {
  readonly position: number
  readonly nanos: bigint
  readonly seq: number
  readonly log: string
  readonly messageId: string | null
}

/** A dead letter, by the number of the request. */
export interface DeadLetter {
  readonly seq: number
  readonly code: string
  readonly payload: string
}

export interface Findings {
  lost: number
  duplicated: number
  reordered: number
  /** Positions with gaps, events for nothing, entries without an event, wrong texts … */
  other: number
  entries: number
  events: number
  readonly problems: Array<string>
}

export const emptyFindings = (): Findings => ({
  lost: 0,
  duplicated: 0,
  reordered: 0,
  other: 0,
  entries: 0,
  events: 0,
  problems: [],
})

/** All entries of an object in the order of its log, past the service. */
export const rowsOf = (shards: TestShards["Service"], object: ObjectRecord) =>
  onShard(shards.shards[object.shard]!, (sql) => {
    const id = toColumn(ObjectId.make(object.id))
    return Effect.gen(function* () {
      const rows = yield* sql<{
        position: bigint
        timestamp: bigint
        seq: bigint
        log: string
        escaped: boolean
        message_id: string | null
      }>`
        select position, timestamp, seq, log, escaped, message_id from log_entries
        where object_id = ${id} order by timestamp, seq`
      const [head] = yield* sql<{ entries: bigint }>`select entries from objects where id = ${id}`
      return {
        entries: Number(head?.entries ?? 0n),
        rows: rows.map((row): Row => ({
          position: Number(row.position),
          nanos: row.timestamp,
          seq: Number(row.seq),
          log: fromStored(row.log, row.escaped),
          messageId: row.message_id,
        })),
      }
    })
    // Right after a storm a server may take its time to accept a connection: that is no verdict.
  }).pipe(Effect.retry({ schedule: Schedule.spaced("1 second"), times: 10 }))

type Tell = (count: "lost" | "duplicated" | "reordered" | "other", problem: string) => void

/** Each append is there as often as it must be, with its text, where its events say. */
const checkAppend = (append: Append, rows: ReadonlyArray<Row>, deadSeqs: ReadonlySet<number>, tell: Tell): void => {
  const { answers, copies, n, named } = append
  if (append.bad) {
    if (rows.length > 0) tell("other", `append ${n} is stored and was no valid request`)
    for (const { seq } of copies)
      if (!deadSeqs.has(seq)) tell("lost", `append ${n}, stored as ${seq}, has no dead letter`)
    if (copies.length > 0 && append.errors === 0) tell("other", `append ${n} was refused without an event`)
    return
  }
  if (append.errors > 0) tell("other", `append ${n} was refused`)
  const isStored = append.confirmedAt !== undefined || copies.length > 0
  const expected = named || copies.length === 0 ? (isStored ? 1 : 0) : copies.length
  if (rows.length < expected) {
    const known = `broker: ${copies.map((copy) => copy.seq).join(", ") || append.confirmedSeq}, parked: ${append.parked.join(", ") || "never"}`
    tell("lost", `append ${n} (${known}) has no entry`)
  }
  if (rows.length > expected)
    tell("duplicated", `append ${n} has ${rows.length} entries: ${rows.map((row) => row.position).join(", ")}`)
  if (rows.length > 0 && answers.length === 0) tell("other", `append ${n} has an entry and no event`)
  if (answers.length > rows.length)
    tell("other", `append ${n} has ${answers.length} different events: ${JSON.stringify(answers)}`)
  for (const row of rows) {
    const copy = copies.find((known) => known.seq === row.seq)
    if (copy?.nanos !== row.nanos)
      tell("other", `entry ${row.position} bears the stamp ${row.nanos}/${row.seq}, which the broker never gave`)
    if (row.log !== textOf(append.object.index, n)) tell("other", `entry ${row.position} has a wrong text`)
    const messageId = named ? `${append.object.index}.${n}` : null
    if (row.messageId !== messageId) tell("other", `entry ${row.position} has a wrong message id`)
  }
  for (const answer of answers) {
    const row = rows.find((known) => known.position === answer.position)
    const isTrue =
      row !== undefined &&
      row.seq === answer.seq &&
      Number(row.nanos / 1_000_000n) === answer.timestamp &&
      answer.id === String(append.object.id)
    if (!isTrue) tell("other", `an event of append ${n} names no true entry: ${JSON.stringify(answer)}`)
  }
}

/**
 * What the publisher sent in sequence is in the log in that sequence. A window was sent when all of the one before was
 * settled; in a window those are in sequence that were confirmed at the first attempt.
 */
const checkSequence = (object: ObjectRecord, entrySeqs: ReadonlyMap<number, number>, tell: Tell): void => {
  let before = { n: -1, seq: 0 }
  let highest = before
  let previous: Append | undefined
  let window = -1
  for (const append of object.appends) {
    const seq = entrySeqs.get(append.n)
    if (append.window !== window) {
      window = append.window
      previous = undefined
      before = highest
    }
    if (seq === undefined) continue
    if (seq < before.seq)
      tell("reordered", `append ${append.n} comes before append ${before.n}, which was confirmed before it was sent`)
    if (append.confirmedSeq === undefined) continue
    // A copy that the broker stored after the confirmed one may be the entry; then the publisher knows no order.
    if (append.copies.every((copy) => copy.seq <= append.confirmedSeq!) && seq > highest.seq)
      highest = { n: append.n, seq }
    if (append.attempts !== 1) continue
    if (previous !== undefined && seq < entrySeqs.get(previous.n)!) {
      tell("reordered", `append ${append.n} comes before append ${previous.n}, which was sent before it`)
    }
    previous = append
  }
}

/** Checks one object; gives its number of entries. */
export const checkObject = (
  object: ObjectRecord,
  stored: { readonly entries: number; readonly rows: ReadonlyArray<Row> },
  deadSeqs: ReadonlySet<number>,
  findings: Findings,
): void => {
  const tell: Tell = (count, problem) => {
    findings[count]++
    findings.problems.push(`object ${object.index} (${object.id}): ${problem}`)
  }
  const { rows } = stored
  findings.entries += rows.length
  if (stored.entries !== rows.length)
    tell("other", `its row counts ${stored.entries} entries, and there are ${rows.length}`)
  const positions = new Set(rows.map((row) => row.position))
  for (let position = 1; position <= rows.length; position++) {
    if (!positions.has(position)) tell("other", `position ${position} of ${rows.length} is missing`)
  }
  const byAppend = new Map<number, Array<Row>>()
  for (let i = 0; i < rows.length; i++) {
    const row = rows[i]!
    const place = placeOf(row.log)
    if (place?.object !== object.index || object.appends[place.n] === undefined) {
      tell("other", `entry ${row.position} is of nobody`)
      continue
    }
    const same = byAppend.get(place.n)
    if (same === undefined) byAppend.set(place.n, [row])
    else same.push(row)
    // One stream stamps them: by time and by number the order is the same.
    if (i > 0 && rows[i - 1]!.seq >= row.seq)
      tell("reordered", `entry ${row.position} comes after one that was stored later`)
  }
  for (const append of object.appends) {
    checkAppend(append, byAppend.get(append.n) ?? [], deadSeqs, tell)
    findings.events += append.answers.length
  }
  const entrySeqs = new Map([...byAppend].map(([n, [row]]) => [n, row!.seq]))
  checkSequence(object, entrySeqs, tell)
}

/** Each dead letter is of a bad request, and holds it to the letter. */
export const checkDeadLetters = (
  ledger: Ledger,
  dead: ReadonlyArray<DeadLetter>,
  bodyOf: (append: Append) => string,
  findings: Findings,
): void => {
  const bad = new Map<number, Append>()
  for (const object of ledger.objects) {
    for (const append of object.appends) if (append.bad) for (const copy of append.copies) bad.set(copy.seq, append)
  }
  for (const { code, payload, seq } of dead) {
    const append = bad.get(seq)
    if (append === undefined) {
      findings.other++
      findings.problems.push(`dead letter ${seq} (${code}) is of no bad request: ${payload.slice(0, 100)}`)
    } else if (payload !== bodyOf(append) || code !== "invalid_message") {
      findings.other++
      findings.problems.push(`dead letter ${seq} is not what was sent: ${code} ${payload.slice(0, 100)}`)
    }
  }
}

/** What a read gave is what the database has. */
export const checkRead = (
  object: ObjectRecord,
  rows: ReadonlyArray<Row>,
  entries: ReadonlyArray<{
    readonly position: number
    readonly seq: number
    readonly timestamp: number
    readonly log: string
  }>,
  how: string,
  findings: Findings,
): void => {
  const differs = rows.findIndex((row, i) => {
    const entry = entries[i]
    return (
      entry === undefined ||
      entry.position !== row.position ||
      entry.seq !== row.seq ||
      entry.timestamp !== Number(row.nanos / 1_000_000n) ||
      entry.log !== row.log
    )
  })
  if (differs < 0 && rows.length === entries.length) return
  findings.other++
  findings.problems.push(
    `object ${object.index}: ${how} gave ${entries.length} entries of ${rows.length}, and differs at number ${differs}`,
  )
}
