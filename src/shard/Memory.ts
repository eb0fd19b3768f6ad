/**
 * The in-memory twin of `ShardPoolLive`, with the same `planAppend`, and the switches that tests need.
 */
import { Context, Effect, Latch, Layer } from "effect"
import {
  compareStamps,
  type LogEntry,
  type NewEntry,
  type Place,
  type Stamp,
  storedBytes,
} from "../contract/LogEntry.ts"
import type { ObjectId } from "../contract/ObjectId.ts"
import { type Head, identityKey, messageKey, planAppend } from "./plan.ts"
import { pageRange } from "./readPage.ts"
import {
  type AppendOutcome,
  BatchRejected,
  type FirstPage,
  type FirstPagesQuery,
  type PageQuery,
  ReadRejected,
  rejectedAlone,
  ShardPool,
  ShardUnavailable,
  type ShardUse,
} from "./ShardPool.ts"

/** `full`: its disk is. `hang`: operations wait until the shard changes its state. */
export type ShardState = "up" | "down" | "full" | "hang"

/** Looks into, and breaks, the shards of `layerMemory`. */
export class MemoryShards extends Context.Service<
  MemoryShards,
  {
    readonly names: ReadonlyArray<string>
    readonly setState: (shard: string, state: ShardState) => Effect.Effect<void>
    /** Has each operation take so long. */
    readonly setDelay: (shard: string, millis: number) => Effect.Effect<void>
    /** Completes when an operation has reached the shard since its state was last set. */
    readonly awaitUse: (shard: string) => Effect.Effect<void>
    /** A batch with a log that matches is rejected, as by a database constraint; `undefined` rejects none. */
    readonly reject: (shard: string, matches: ((log: string) => boolean) | undefined) => Effect.Effect<void>
    /** Reads of an object that matches are rejected, as by a statement time-out; `undefined` rejects none. */
    readonly rejectReads: (shard: string, matches: ((id: ObjectId) => boolean) | undefined) => Effect.Effect<void>
    /** All entries of an object by position. */
    readonly entries: (shard: string, id: ObjectId) => Effect.Effect<ReadonlyArray<LogEntry>>
    readonly objects: (shard: string) => Effect.Effect<ReadonlyArray<ObjectId>>
    /** Drops what an object has beyond a position, as a database does that is restored from an older backup. */
    readonly restore: (shard: string, id: ObjectId, position: number) => Effect.Effect<void>
    /** The sizes of the batches that were stored, in order. */
    readonly batches: (shard: string) => Effect.Effect<ReadonlyArray<number>>
  }
>()("objectlog/shard/MemoryShards") {}

export interface MemoryOptions {
  /** Logs that every shard rejects from the start. */
  readonly reject?: ((log: string) => boolean) | undefined
}

/** A ShardPool on Maps, and its switches. Several workers share it by sharing the layer, or the services it gives. */
export const layerMemory = (
  names: ReadonlyArray<string>,
  options?: MemoryOptions,
): Layer.Layer<ShardPool | MemoryShards> => Layer.effectContext(Effect.sync(() => make(names, options)))

interface Shard {
  readonly name: string
  readonly logs: Map<ObjectId, Log>
  readonly batches: Array<number>
  state: ShardState
  delayMillis: number
  /** Operations under way. */
  readonly inUse: Record<ShardUse, number>
  /** Open unless the shard hangs. */
  readonly gate: Latch.Latch
  /** Opened by the next operation. */
  readonly used: Latch.Latch
  reject: ((log: string) => boolean) | undefined
  rejectReads: ((id: ObjectId) => boolean) | undefined
}

interface Log {
  head: Head
  /** By position. */
  readonly entries: Array<Entry>
  /** By stamp. */
  readonly sorted: Array<Entry>
  readonly byIdentity: Map<string, Place>
  readonly byMessageId: Map<string, Place>
}

interface Entry extends LogEntry {
  readonly bytes: number
}

const make = (names: ReadonlyArray<string>, options?: MemoryOptions): Context.Context<ShardPool | MemoryShards> => {
  const makeShard = (name: string): Shard => ({
    name,
    logs: new Map(),
    batches: [],
    state: "up",
    delayMillis: 0,
    inUse: { append: 0, read: 0 },
    gate: Latch.makeUnsafe(true),
    used: Latch.makeUnsafe(false),
    reject: options?.reject,
    rejectReads: undefined,
  })
  const shards = new Map(names.map((name) => [name, makeShard(name)]))
  const shardOf = (name: string): Shard => {
    const shard = shards.get(name)
    if (shard === undefined) throw new RangeError(`there is no shard ${name}`)
    return shard
  }
  const use = <A, E>(
    name: string,
    kind: ShardUse,
    operation: string,
    run: (shard: Shard) => Effect.Effect<A, E>,
  ): Effect.Effect<A, E | ShardUnavailable> =>
    Effect.suspend(() => {
      const shard = shardOf(name)
      shard.inUse[kind]++
      shard.used.openUnsafe()
      return Effect.andThen(
        Effect.andThen(shard.gate.await, shard.delayMillis > 0 ? Effect.sleep(shard.delayMillis) : Effect.void),
        Effect.suspend((): Effect.Effect<A, E | ShardUnavailable> =>
          shard.state === "down" || shard.state === "full"
            ? Effect.fail(new ShardUnavailable({ shard: shard.name, operation, ...failures[shard.state] }))
            : run(shard),
        ),
      ).pipe(Effect.ensuring(Effect.sync(() => shard.inUse[kind]--)))
    })

  const pool = ShardPool.of({
    append: (name, batch) => use(name, "append", "append", (shard) => append(shard, batch)),
    readFirstPages: (name, query) =>
      use(name, "read", "read", (shard) => read(shard, query.reads, () => firstPages(shard, query))),
    readPage: (name, query) =>
      use(name, "read", "read", (shard) => read(shard, [query], () => page(shard.logs.get(query.id), query))),
    health: Effect.sync(() =>
      Array.from(shards.values(), ({ name, state }) => ({
        shard: name,
        ok: state === "up",
        reason: state === "up" ? undefined : state === "hang" ? "timeout" : failures[state].reason,
      })),
    ),
    usage: () =>
      Array.from(shards.values(), ({ inUse, name }) => ({
        shard: name,
        append: { inUse: inUse.append, waiting: 0 },
        read: { inUse: inUse.read, waiting: 0 },
      })),
  })
  const control = MemoryShards.of({
    names,
    setState: (name, state) =>
      Effect.sync(() => {
        const shard = shardOf(name)
        shard.state = state
        shard.used.closeUnsafe()
        if (state === "hang") shard.gate.closeUnsafe()
        else shard.gate.openUnsafe()
      }),
    setDelay: (name, millis) => Effect.sync(() => void (shardOf(name).delayMillis = millis)),
    awaitUse: (name) => Effect.suspend(() => shardOf(name).used.await),
    reject: (name, matches) => Effect.sync(() => void (shardOf(name).reject = matches)),
    rejectReads: (name, matches) => Effect.sync(() => void (shardOf(name).rejectReads = matches)),
    entries: (name, id) => Effect.sync(() => (shardOf(name).logs.get(id)?.entries ?? []).map(toEntry)),
    objects: (name) => Effect.sync(() => [...shardOf(name).logs.keys()]),
    restore: (name, id, position) => Effect.sync(() => cutOff(shardOf(name).logs.get(id), position)),
    batches: (name) => Effect.sync(() => [...shardOf(name).batches]),
  })
  return Context.make(ShardPool, pool).pipe(Context.add(MemoryShards, control))
}

const failures = {
  down: { reason: "connection", cause: new Error("the shard is down") },
  full: { reason: "53100", cause: new Error("no space left on device") },
} as const

const read = <A>(
  { name, rejectReads }: Shard,
  reads: ReadonlyArray<{ readonly id: ObjectId }>,
  run: () => A,
): Effect.Effect<A, ReadRejected> =>
  rejectReads !== undefined && reads.some(({ id }) => rejectReads(id))
    ? Effect.fail(new ReadRejected({ shard: name, reason: "57014", cause: new Error("rejected by the test") }))
    : Effect.sync(run)

/** Synchronous, so atomic. */
const append = (
  shard: Shard,
  batch: ReadonlyArray<NewEntry>,
): Effect.Effect<ReadonlyArray<AppendOutcome>, BatchRejected> => {
  const { logs, name, reject } = shard
  if (reject !== undefined && batch.some((entry) => reject(entry.log))) {
    return rejectedAlone(
      batch.length,
      new BatchRejected({ shard: name, sqlState: "22000", cause: new Error("rejected by the test") }),
    )
  }
  const heads = new Map<ObjectId, Head>()
  const byIdentity = new Map<string, Place>()
  const byMessageId = new Map<string, Place>()
  for (const entry of batch) {
    const log = logs.get(entry.id)
    heads.set(entry.id, log?.head ?? { entries: 0, lastTimestamp: -1n })
    const identity = identityKey(entry.id, entry)
    const same = log?.byIdentity.get(identity)
    if (same !== undefined) byIdentity.set(identity, same)
    if (entry.messageId === undefined) continue
    const message = messageKey(entry.id, entry.messageId)
    const twin = log?.byMessageId.get(message)
    if (twin !== undefined) byMessageId.set(message, twin)
  }
  const plan = planAppend(batch, heads, byIdentity, byMessageId)
  for (const { entry, position } of plan.inserts) insert(logOf(logs, entry.id), entry, position)
  for (const [id, head] of plan.heads) logOf(logs, id).head = head
  shard.batches.push(batch.length)
  return Effect.succeed(plan.placed)
}

const logOf = (logs: Map<ObjectId, Log>, id: ObjectId): Log => {
  let log = logs.get(id)
  if (log === undefined) {
    log = {
      head: { entries: 0, lastTimestamp: -1n },
      entries: [],
      sorted: [],
      byIdentity: new Map(),
      byMessageId: new Map(),
    }
    logs.set(id, log)
  }
  return log
}

const cutOff = (log: Log | undefined, position: number): void => {
  if (log === undefined) return
  const kept = log.sorted.filter((entry) => entry.position <= position)
  log.sorted.splice(0, Infinity, ...kept)
  log.entries.length = Math.min(log.entries.length, position)
  for (const known of [log.byIdentity, log.byMessageId]) {
    for (const [key, existing] of known) if (existing.position > position) known.delete(key)
  }
  log.head = { entries: log.entries.length, lastTimestamp: kept.at(-1)?.timestamp ?? -1n }
}

const insert = (log: Log, { id, log: text, messageId, seq, timestamp }: NewEntry, position: number): void => {
  const entry: Entry = { position, timestamp, seq, log: text, bytes: storedBytes(text) }
  const existing: Place = { position, timestamp, seq }
  log.entries.push(entry)
  log.sorted.splice(lowerBound(log.sorted, entry), 0, entry)
  log.byIdentity.set(identityKey(id, entry), existing)
  if (messageId !== undefined) log.byMessageId.set(messageKey(id, messageId), existing)
}

/** Where a stamp is, or would be. */
const lowerBound = (sorted: ReadonlyArray<Entry>, stamp: Stamp): number => {
  let low = 0
  let high = sorted.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (compareStamps(sorted[middle]!, stamp) < 0) low = middle + 1
    else high = middle
  }
  return low
}

const firstPages = ({ logs }: Shard, { maxBytes, order, reads }: FirstPagesQuery): ReadonlyArray<FirstPage> => {
  let bytes = 0
  return reads.map((read) => {
    const log = logs.get(read.id)
    const upTo = log?.head.entries ?? 0
    const all = page(log, { ...read, order, upTo, maxBytes: Number.MAX_SAFE_INTEGER })
    const entries: Array<LogEntry> = []
    for (const entry of all) {
      if (bytes >= maxBytes) break
      entries.push(entry)
      bytes += storedBytes(entry.log)
    }
    return { upTo, entries, isCut: entries.length < all.length }
  })
}

const page = (log: Log | undefined, query: PageQuery): ReadonlyArray<LogEntry> => {
  if (log === undefined) return []
  const { above, below, positionAbove } = pageRange(query.order, query)
  const positionMax = Math.min(query.upTo, query.scanTo)
  const found: Array<LogEntry> = []
  let bytes = 0
  for (const entry of inOrder(log, query.order, above, below, positionAbove)) {
    if (found.length >= query.maxEntries || (found.length > 0 && bytes >= query.maxBytes)) break
    if (compareStamps(entry, above) <= 0 || compareStamps(entry, below) >= 0) continue
    if (entry.position <= positionAbove || entry.position > positionMax) continue
    found.push(toEntry(entry))
    bytes += entry.bytes
  }
  return found
}

function* inOrder(log: Log, order: PageQuery["order"], above: Stamp, below: Stamp, positionAbove: number) {
  const { entries, sorted } = log
  if (order === "position") {
    for (let i = Math.max(0, positionAbove); i < entries.length; i++) yield entries[i]!
  } else if (order === "asc") {
    for (let i = lowerBound(sorted, above); i < sorted.length; i++) yield sorted[i]!
  } else {
    for (let i = lowerBound(sorted, below) - 1; i >= 0; i--) yield sorted[i]!
  }
}

const toEntry = ({ log, position, seq, timestamp }: Entry): LogEntry => ({ position, timestamp, seq, log })
