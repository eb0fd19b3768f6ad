/**
 * What an append batch does to the logs, decided from the locked object rows. Pure, and shared by the live and the
 * in-memory ShardPool: PostgreSQL only stores what is decided here.
 */
import { compareStamps, type NewEntry, type Place, type Placed, type Stamp } from "../contract/LogEntry.ts"
import type { ObjectId } from "../contract/ObjectId.ts"

/** An object's row: number of entries, and the largest entry timestamp, below which an identity may exist already. */
export interface Head {
  readonly entries: number
  readonly lastTimestamp: bigint
}

export interface Plan {
  /** One per entry of the batch, in its order. */
  readonly placed: ReadonlyArray<Placed>
  /** What to insert, with positions. */
  readonly inserts: ReadonlyArray<{ readonly entry: NewEntry; readonly position: number }>
  /** The heads that changed. */
  readonly heads: ReadonlyMap<ObjectId, Head>
}

export const identityKey = (id: ObjectId, stamp: Stamp): string => `${id}/${stamp.timestamp}/${stamp.seq}`
export const messageKey = (id: ObjectId, messageId: string): string => `${id}/${messageId}`

/** Can an entry with this identity exist already? If not, nothing has to be looked up: the common case. */
export const mayExist = (entry: NewEntry, head: Head): boolean => entry.timestamp <= head.lastTimestamp

/**
 * Gives every new entry the next position of its object, in the order of the stamps.
 *
 * `byIdentity` and `byMessageId` hold the entries of the batch that are stored: they are looked up after the object rows
 * were locked, so nobody can add one in between. An entry that is stored and is missing in both is planned as a new one,
 * which the database then refuses.
 */
export const planAppend = (
  batch: ReadonlyArray<NewEntry>,
  heads: ReadonlyMap<ObjectId, Head>,
  byIdentity: ReadonlyMap<string, Place>,
  byMessageId: ReadonlyMap<string, Place>,
): Plan => {
  const placed: Array<Placed> = Array.from({ length: batch.length })
  const inserts: Array<{ entry: NewEntry; position: number }> = []
  const changed = new Map<ObjectId, Head>()
  const inBatch = new Map<string, Place>()
  const order = stampOrder(batch)
  for (let rank = 0; rank < order.length; rank++) {
    const index = order[rank]!
    const entry = batch[index]!
    // In stamp order a delivery that is in the batch twice stands right behind itself, or behind others of its stamp.
    const twin = twinBefore(batch, order, rank)
    if (twin !== undefined) {
      placed[index] = placed[twin]!
      continue
    }
    const locked = heads.get(entry.id)!
    if (mayExist(entry, locked)) {
      const same = byIdentity.get(identityKey(entry.id, entry))
      if (same !== undefined) {
        placed[index] = at("Stored", same)
        continue
      }
    }
    const messageId = entry.messageId === undefined ? undefined : messageKey(entry.id, entry.messageId)
    if (messageId !== undefined) {
      const same = byMessageId.get(messageId) ?? inBatch.get(messageId)
      if (same !== undefined) {
        // With the same stamp it is itself, which was not looked up by its identity.
        placed[index] = at(compareStamps(same, entry) === 0 ? "Stored" : "Duplicate", same)
        continue
      }
    }
    const head = changed.get(entry.id) ?? locked
    const position = head.entries + 1
    const stored = { _tag: "Stored", position, timestamp: entry.timestamp, seq: entry.seq } as const
    placed[index] = stored
    inserts.push({ entry, position })
    changed.set(entry.id, {
      entries: position,
      lastTimestamp: entry.timestamp > head.lastTimestamp ? entry.timestamp : head.lastTimestamp,
    })
    if (messageId !== undefined) inBatch.set(messageId, stored)
  }
  return { placed, inserts, heads: changed }
}

const at = (tag: Placed["_tag"], { position, seq, timestamp }: Place): Placed => ({
  _tag: tag,
  position,
  timestamp,
  seq,
})

const twinBefore = (batch: ReadonlyArray<NewEntry>, order: ReadonlyArray<number>, at: number): number | undefined => {
  const entry = batch[order[at]!]!
  for (let before = at - 1; before >= 0; before--) {
    const index = order[before]!
    if (compareStamps(batch[index]!, entry) !== 0) return undefined
    if (batch[index]!.id === entry.id) return index
  }
  return undefined
}

/** Indexes of the batch in stamp order. Batches come sorted nearly always; then nothing is sorted. */
const stampOrder = (batch: ReadonlyArray<NewEntry>): ReadonlyArray<number> => {
  const order = Array.from(batch, (_, index) => index)
  for (let i = 1; i < batch.length; i++) {
    if (compareStamps(batch[i - 1]!, batch[i]!) > 0) {
      return order.sort((a, b) => compareStamps(batch[a]!, batch[b]!))
    }
  }
  return order
}
