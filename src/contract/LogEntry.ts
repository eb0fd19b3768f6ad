/**
 * One entry of an object's log.
 *
 * Its identity is (object, `timestamp`, `seq`): what the broker stamped when it stored the append. A redelivery carries
 * the same stamp, so the identity is sort order, idempotency key and cursor at once.
 */
import type { ObjectId } from "./ObjectId.ts"

/** The broker's stamp: Unix nanoseconds, and the message's sequence number in its stream. */
export interface Stamp {
  readonly timestamp: bigint
  readonly seq: number
}

/** An append that was decoded and is not stored yet. */
export interface NewEntry extends Stamp {
  readonly id: ObjectId
  readonly log: string
  /** The publisher's `Nats-Msg-Id`: idempotency key within the object, for ever. */
  readonly messageId: string | undefined
  /**
   * It was delivered before, so it may be stored already. If this is false and it is stored nevertheless (the broker has lost
   * count, or another worker was faster), that is found out all the same, but later and at a higher price.
   */
  readonly redelivered: boolean
}

/** A stored entry. `position` counts 1, 2, 3 … within its object, in the order of commit. */
export interface LogEntry extends Stamp {
  readonly position: number
  readonly log: string
}

/** The place of an entry in its object's log. */
export interface Place extends Stamp {
  readonly position: number
}

/** What became of an append that the log accounts for. */
export type Placed =
  /** It is stored, by this attempt or by an earlier one. */
  | ({ readonly _tag: "Stored" } & Place)
  /** An earlier entry has its message id, and this is the place of that one. */
  | ({ readonly _tag: "Duplicate" } & Place)

const nanosPerMilli = 1_000_000n

export const toMillis = (nanos: bigint): number => Number(nanos / nanosPerMilli)

/** The largest nanosecond stamp that a `bigint` column can hold; in milliseconds, the year 2262. */
export const timestampMax = 0x7fff_ffff_ffff_ffffn

export const fromMillis = (millis: number): bigint => {
  const nanos = BigInt(millis) * nanosPerMilli
  return nanos > timestampMax ? timestampMax : nanos
}

export const compareStamps = (a: Stamp, b: Stamp): number =>
  a.timestamp < b.timestamp ? -1 : a.timestamp > b.timestamp ? 1 : a.seq - b.seq

/** The PostgreSQL client takes a U+FEFF at the beginning for a byte order mark, where there is a U+FFFD as well. */
const losesItsBeginning = (log: string): boolean => log.charCodeAt(0) === 0xfeff && log.includes("\ufffd")

/**
 * PostgreSQL text cannot hold U+0000 and UTF-8 cannot hold a lone surrogate. Such a log is stored as its JSON escape,
 * which is plain ASCII where it matters, and marked.
 */
export const toStored = (log: string): { readonly log: string; readonly escaped: boolean } =>
  log.includes("\u0000") || !log.isWellFormed() || losesItsBeginning(log)
    ? { log: JSON.stringify(log), escaped: true }
    : { log, escaped: false }

/** What a log takes in the database, in bytes. */
export const storedBytes = (log: string): number => Buffer.byteLength(toStored(log).log)

export const fromStored = (log: string, escaped: boolean): string => (escaped ? (JSON.parse(log) as string) : log)
