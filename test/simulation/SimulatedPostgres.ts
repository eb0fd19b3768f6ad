/**
 * One PostgreSQL server of a simulation: tables, transactions at read committed, row locks, unique keys, deadlocks.
 *
 * It understands the statements of `src/shard` and reads from their text what matters: which rows, which bounds, `for
 * update`, `on conflict do nothing`. So the real `appendEntries` and `readPage` run on it, several transactions at a time,
 * and a statement without its `for update` goes wrong here as it would there. A statement that it does not know is a
 * defect: whoever changes one in `src/shard` teaches it here.
 */
import type { World } from "./World.ts"

export interface EntryRow {
  readonly objectId: bigint
  readonly timestamp: bigint
  readonly seq: bigint
  readonly position: bigint
  readonly log: string
  readonly escaped: boolean
  readonly messageId: string | null
}

interface ObjectRow {
  readonly id: bigint
  readonly entries: bigint
  readonly lastTimestamp: bigint
}

/** A failure with its SQLSTATE. */
export class Refused extends Error {
  readonly code: string

  constructor(code: string, message: string) {
    super(message)
    this.code = code
  }
}

export type Row = Readonly<Record<string, unknown>>

/** What a statement does: it may wait for locks, each time giving what it waits for. */
type Steps = Generator<Key, ReadonlyArray<Row>, void>

/** Something that one transaction holds: a row's lock, or a unique key that it inserted. */
interface Key {
  readonly name: string
  owner: Transaction | undefined
  readonly waiters: Array<() => void>
}

export class Transaction {
  readonly objects = new Map<bigint, ObjectRow>()
  readonly entries: Array<EntryRow> = []
  readonly held = new Set<Key>()
  waitsFor: Key | undefined
  /** After a failed statement only a roll-back is accepted. */
  aborted = false
  open = true
}

export interface TableOptions {
  /** Unique keys of `log_entries`; a mutation leaves them out. */
  readonly uniqueKeys: boolean
}

/** What a page statement compares with `>`, and whether it bounds positions; both read from its text. */
interface PageText {
  readonly order: "asc" | "desc" | "position"
  readonly inclusive: boolean
  readonly bounded: boolean
}

export class SimulatedPostgres {
  readonly name: string
  readonly #world: World
  readonly #options: TableOptions
  readonly #objects = new Map<bigint, ObjectRow>()
  readonly #entries = new Map<bigint, Array<EntryRow>>()
  readonly #keys = new Map<string, Key>()
  readonly #committedKeys = new Set<string>()
  readonly #poison: (log: string) => boolean

  constructor(name: string, world: World, options: TableOptions, poison: (log: string) => boolean) {
    this.name = name
    this.#world = world
    this.#options = options
    this.#poison = poison
  }

  /** Committed entries of an object in the order of commit. */
  entriesOf(objectId: bigint): ReadonlyArray<EntryRow> {
    return this.#entries.get(objectId) ?? []
  }

  objectIds(): ReadonlyArray<bigint> {
    return [...this.#objects.keys()]
  }

  countOf(objectId: bigint): bigint {
    return this.#objects.get(objectId)?.entries ?? 0n
  }

  begin(): Transaction {
    return new Transaction()
  }

  commit(transaction: Transaction): void {
    for (const row of transaction.objects.values()) this.#objects.set(row.id, row)
    for (const row of transaction.entries) {
      const rows = this.#entries.get(row.objectId)
      if (rows === undefined) this.#entries.set(row.objectId, [row])
      else rows.push(row)
    }
    for (const key of transaction.held) if (!key.name.startsWith("row ")) this.#committedKeys.add(key.name)
    this.#end(transaction)
  }

  rollback(transaction: Transaction): void {
    this.#end(transaction)
  }

  #end(transaction: Transaction): void {
    transaction.open = false
    for (const key of transaction.held) {
      key.owner = undefined
      const waiters = key.waiters.splice(0)
      if (waiters.length === 0) this.#keys.delete(key.name)
      for (const waiter of waiters) waiter()
    }
    transaction.held.clear()
  }

  /** Runs a statement; `done` is told its rows or its failure, perhaps later. Gives what cancels a wait. */
  execute(
    transaction: Transaction,
    text: string,
    parameters: ReadonlyArray<unknown>,
    done: (result: ReadonlyArray<Row> | Refused) => void,
  ): () => void {
    const steps = this.#statement(transaction, text, parameters)
    let cancelled = false
    const fail = (refused: Refused) => {
      transaction.aborted = true
      done(refused)
    }
    const advance = (): void => {
      transaction.waitsFor = undefined
      if (cancelled || !transaction.open) return
      try {
        const step = steps.next()
        if (step.done) return done(step.value)
        this.#wait(transaction, step.value, advance, (refused) => {
          cancelled = true
          fail(refused)
        })
      } catch (error) {
        if (!(error instanceof Refused)) throw error
        fail(error)
      }
    }
    advance()
    return () => {
      cancelled = true
      transaction.waitsFor = undefined
    }
  }

  #wait(transaction: Transaction, key: Key, resume: () => void, fail: (refused: Refused) => void): void {
    this.#world.strike("waited for a row lock")
    transaction.waitsFor = key
    // The owner of what the owner waits for, and so on: back at the start, nobody would ever go on.
    for (let next: Key | undefined = key; next !== undefined; next = next.owner?.waitsFor) {
      if (next.owner !== transaction) continue
      transaction.waitsFor = undefined
      this.#world.trace(() => `${this.name}: deadlock`)
      return fail(new Refused("40P01", "deadlock detected"))
    }
    let waiting = true
    key.waiters.push(() => {
      if (!waiting) return
      waiting = false
      resume()
    })
    this.#world.later(5_000, () => {
      if (!waiting || !transaction.open || transaction.waitsFor !== key) return
      waiting = false
      transaction.waitsFor = undefined
      fail(new Refused("55P03", "canceling statement due to lock timeout"))
    })
  }

  /** Takes a key, waiting for whoever has it; a unique key that is committed stays taken. */
  *#take(transaction: Transaction, name: string): Generator<Key, "taken" | "exists", void> {
    while (true) {
      if (this.#committedKeys.has(name)) return "exists"
      let key = this.#keys.get(name)
      if (key === undefined) {
        key = { name, owner: undefined, waiters: [] }
        this.#keys.set(name, key)
      }
      if (key.owner === transaction) return name.startsWith("row ") ? "taken" : "exists"
      if (key.owner === undefined) {
        key.owner = transaction
        transaction.held.add(key)
        return "taken"
      }
      yield key
    }
  }

  #statement(transaction: Transaction, text: string, parameters: ReadonlyArray<unknown>): Steps {
    const sql = normalised(text)
    if (sql.startsWith("insert into objects ")) {
      return this.#ensureObjects(transaction, parameters, sql.includes("on conflict do nothing"))
    }
    if (sql.startsWith("select id, entries, last_timestamp from objects where id = any($1)")) {
      return this.#lockObjects(transaction, parameters, sql.includes("for update"))
    }
    if (sql === "select pg_advisory_xact_lock($1)") return this.#takeAdvisory(transaction)
    if (sql.includes("order by timestamp, seq limit 1 ) as found")) {
      return this.#find(transaction, parameters, sql, (row) => `${row.objectId}/${row.timestamp}/${row.seq}`)
    }
    if (sql.includes("order by message_id limit 1 ) as found")) {
      return this.#find(transaction, parameters, sql, (row) => `${row.objectId}/${row.messageId}`)
    }
    if (sql.startsWith("with inserted as ( insert into log_entries ")) return this.#store(transaction, parameters, sql)
    const firstOrder = /\) as pages order by number, (timestamp, seq|timestamp desc, seq desc|position)$/.exec(sql)?.[1]
    if (firstOrder !== undefined) return this.#firstPages(transaction, parameters, orderOf(firstOrder))
    const order = /\) as page .* order by (timestamp, seq|timestamp desc, seq desc|position)$/.exec(sql)?.[1]
    if (order !== undefined) {
      return this.#page(transaction, parameters, {
        order: orderOf(order),
        inclusive: sql.includes("(timestamp, seq) >= ("),
        bounded: (sql.match(/and position <= \$\d+/g) ?? []).length === 2,
      })
    }
    throw new Error(`the simulated PostgreSQL does not know this statement: ${sql}`)
  }

  *#ensureObjects(transaction: Transaction, [ids]: ReadonlyArray<unknown>, skipsExisting: boolean): Steps {
    for (const id of int8s(ids)) {
      if ((yield* this.#take(transaction, `object ${id}`)) === "taken") {
        transaction.objects.set(id, { id, entries: 0n, lastTimestamp: -1n })
      } else if (!skipsExisting) {
        throw new Refused("23505", "duplicate key value violates unique constraint objects_pkey")
      }
    }
    return []
  }

  /** Held like the lock of a row, until the transaction ends. */
  *#takeAdvisory(transaction: Transaction): Steps {
    yield* this.#take(transaction, "row advisory")
    return []
  }

  *#lockObjects(transaction: Transaction, [ids]: ReadonlyArray<unknown>, locks: boolean): Steps {
    // The snapshot of the statement: what is inserted after it began is not seen, though a newer version of a row is.
    const visible = int8s(ids).filter((id) => this.#objectOf(transaction, id) !== undefined)
    const rows: Array<Row> = []
    for (const id of visible) {
      if (locks) yield* this.#take(transaction, `row ${id}`)
      const { entries, lastTimestamp } = this.#objectOf(transaction, id)!
      rows.push({ id, entries, last_timestamp: lastTimestamp })
    }
    return rows
  }

  // oxlint-disable-next-line require-yield -- it never waits
  *#find(
    transaction: Transaction,
    parameters: ReadonlyArray<unknown>,
    sql: string,
    keyOf: (row: EntryRow) => string,
  ): Steps {
    const columns = parameters.map((parameter) => list(parameter))
    const wanted = new Map(
      columns[0]!.map((_, at) => [columns.map((column) => String(column[at])).join("/"), BigInt(at + 1)]),
    )
    const found: Array<Row> = []
    if (sql.endsWith("where false")) return found
    for (const objectId of new Set(int8s(parameters[0]))) {
      for (const row of this.#entriesOf(transaction, objectId)) {
        const number = wanted.get(keyOf(row))
        if (number === undefined) continue
        const { position, seq, timestamp } = row
        found.push({ number, object_id: objectId, timestamp, seq, position })
      }
    }
    return found
  }

  *#store(transaction: Transaction, parameters: ReadonlyArray<unknown>, sql: string): Steps {
    const keepsMessageIds = sql.includes("escaped, message_id)")
    const skipped = sql.includes("entries = changed.entries + 1") ? 1n : 0n

    const [ids, timestamps, seqs, positions, logs, escapes, messageIds, changedIds, counts, lasts] =
      parameters.map(list)
    for (let at = 0; at < ids!.length; at++) {
      const row: EntryRow = {
        objectId: int8(ids![at]),
        timestamp: int8(timestamps![at]),
        seq: int8(seqs![at]),
        position: int8(positions![at]),
        log: String(logs![at]),
        escaped: escapes![at] === true,
        messageId: !keepsMessageIds || messageIds![at] === null ? null : String(messageIds![at]),
      }
      if (this.#poison(row.log)) {
        this.#world.strike("poison entry")
        throw new Refused("54000", "index row size exceeds the maximum")
      }
      if (this.#options.uniqueKeys) {
        const keys = [`pk ${row.objectId} ${row.timestamp} ${row.seq}`, `position ${row.objectId} ${row.position}`]
        if (row.messageId !== null) keys.push(`message ${row.objectId} ${row.messageId}`)
        for (const key of keys) {
          if ((yield* this.#take(transaction, key)) === "exists") {
            throw new Refused("23505", `duplicate key value violates a unique constraint of log_entries`)
          }
        }
      }
      transaction.entries.push(row)
    }
    for (let at = 0; at < changedIds!.length; at++) {
      const id = int8(changedIds![at])
      yield* this.#take(transaction, `row ${id}`)
      transaction.objects.set(id, { id, entries: int8(counts![at]) + skipped, lastTimestamp: int8(lasts![at]) })
    }
    return []
  }

  // oxlint-disable-next-line require-yield -- it never waits
  *#page(transaction: Transaction, parameters: ReadonlyArray<unknown>, text: PageText): Steps {
    const [id, aboveTime, aboveSeq, belowTime, belowSeq, positionAbove, scanTo, upTo, maxEntries, maxBytes] =
      parameters.map(int8)
    const positionMax = text.bounded ? upTo! : 2n ** 62n
    const rows = this.#entriesOf(transaction, id!).filter((row) => {
      const low = compare(row.timestamp, row.seq, aboveTime!, aboveSeq!)
      const high = compare(row.timestamp, row.seq, belowTime!, belowSeq!)
      return (
        (text.inclusive ? low >= 0 : low > 0) &&
        high < 0 &&
        row.position > positionAbove! &&
        row.position <= scanTo! &&
        row.position <= positionMax
      )
    })
    rows.sort((a, b) => {
      if (text.order === "position") return Number(a.position - b.position)
      const order = compare(a.timestamp, a.seq, b.timestamp, b.seq)
      return text.order === "asc" ? order : -order
    })
    const page: Array<Row> = []
    let bytes = 0n
    for (const row of rows) {
      if (BigInt(page.length) >= maxEntries! || (page.length > 0 && bytes >= maxBytes!)) break
      const { escaped, log, position, seq, timestamp } = row
      page.push({ at_position: Number(position), at_seq: Number(seq), timestamp, log, escaped })
      bytes += BigInt(Buffer.byteLength(row.log))
    }
    return page
  }

  *#firstPages(transaction: Transaction, parameters: ReadonlyArray<unknown>, order: PageText["order"]): Steps {
    const [maxBytes, ...columns] = parameters
    const all: Array<Row> = []
    let bytes = 0n
    for (const [at, id] of int8s(columns[0]).entries()) {
      const entries = this.#objectOf(transaction, id)?.entries ?? 0n
      const bounds = columns.slice(0, 7).map((column) => list(column)[at])
      const page = yield* this.#page(transaction, [...bounds, entries, list(columns[7])[at], 2n ** 62n], {
        order,
        inclusive: false,
        bounded: true,
      })
      const head = { read: at + 1, up_to: Number(entries) }
      if (page.length === 0) all.push({ ...head, at_position: null })
      for (const row of page) {
        all.push({ ...row, ...head, log: bytes < int8(maxBytes) ? row["log"] : null })
        bytes += BigInt(Buffer.byteLength(String(row["log"])))
      }
    }
    return all
  }

  #objectOf(transaction: Transaction, id: bigint): ObjectRow | undefined {
    return transaction.objects.get(id) ?? this.#objects.get(id)
  }

  #entriesOf(transaction: Transaction, objectId: bigint): Array<EntryRow> {
    return [...this.entriesOf(objectId), ...transaction.entries.filter((row) => row.objectId === objectId)]
  }
}

const orderOf = (text: string): PageText["order"] =>
  text === "position" ? "position" : text.includes("desc") ? "desc" : "asc"

const normalisedTexts = new Map<string, string>()

const normalised = (text: string): string => {
  let sql = normalisedTexts.get(text)
  if (sql === undefined) normalisedTexts.set(text, (sql = text.replace(/\s+/g, " ").trim()))
  return sql
}

const compare = (timestamp: bigint, seq: bigint, otherTimestamp: bigint, otherSeq: bigint): number =>
  timestamp < otherTimestamp ? -1 : timestamp > otherTimestamp ? 1 : seq < otherSeq ? -1 : seq > otherSeq ? 1 : 0

const list = (value: unknown): ReadonlyArray<unknown> => {
  if (!Array.isArray(value)) throw new Error("expected an array parameter")
  return value
}

const int8 = (value: unknown): bigint => {
  if (typeof value !== "bigint") throw new Error("expected an int8 parameter")
  return value
}

const int8s = (value: unknown): ReadonlyArray<bigint> => list(value).map(int8)
