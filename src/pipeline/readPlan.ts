/** How a read goes on: what it fetches next, and what that means for it. Pure. */
import type { Delivery } from "../broker/Broker.ts"
import type { Cursor } from "../contract/Cursor.ts"
import type { LogEntry } from "../contract/LogEntry.ts"
import type { ReadRequest } from "../contract/Request.ts"
import type { ReadQuery } from "../shard/ShardPool.ts"
import * as limits from "./limits.ts"

/** A read that was admitted. */
export interface Read {
  readonly delivery: Delivery
  readonly request: ReadRequest
  /** Bytes of its pages at most. */
  readonly pageMax: number
}

/** Where a read has got to. */
export interface Place {
  /** The next fetch begins behind this. */
  readonly after: Cursor | undefined
  /** Entries up to here. */
  readonly seen: number
}

/** What a fetch means for the read. */
export interface Step extends Place {
  /** Those of the fetched entries that are wanted. */
  readonly entries: ReadonlyArray<LogEntry>
  /** Nothing is wanted, or nothing is there, behind them. */
  readonly isLast: boolean
  /** It ends because of `limit`, and there is more. */
  readonly isLimited: boolean
}

export const cursorOf = (order: ReadRequest["order"], entry: LogEntry): Cursor =>
  order === "position" ? { order, position: entry.position } : { order, timestamp: entry.timestamp, seq: entry.seq }

/**
 * Everything that the pages of a request depend on: the entries that it sees, and how large a page may be. Whoever changes
 * how pages are cut adds to it.
 */
export const snapshotName = (upTo: number, pageMax: number): string => `${upTo.toString(36)}.${pageMax.toString(36)}`

/** Filtered by time and in the order of positions, a fetch may look at many entries and find none: so it has a bound. */
const scanEnd = ({ from, order, to }: ReadRequest, after: Cursor | undefined): number =>
  order === "position" && (from !== undefined || to !== undefined)
    ? (after?.order === "position" ? after.position : 0) + limits.scanEntriesMax
    : Number.MAX_SAFE_INTEGER

/** What to fetch at a place; one entry more than is wanted tells whether `limit` cuts the read short. */
export const nextQuery = (request: ReadRequest, { after, seen }: Place, entriesMax: number): ReadQuery => {
  const { from, id, limit = Infinity, to } = request
  return { id, after, from, to, scanTo: scanEnd(request, after), maxEntries: Math.min(entriesMax, limit - seen + 1) }
}

/** What a fetch brought, of a log whose snapshot ends at `upTo`; `isFull`: it may have ended because of its bytes. */
export const step = (
  request: ReadRequest,
  before: Place,
  { maxEntries, scanTo }: ReadQuery,
  fetched: ReadonlyArray<LogEntry>,
  upTo: number,
  isFull: boolean,
): Step => {
  const { from, limit = Infinity, order, to } = request
  const isLimited = fetched.length > limit - before.seen
  const entries = isLimited ? fetched.slice(0, limit - before.seen) : fetched
  const seen = before.seen + entries.length
  const isExhausted = fetched.length < maxEntries && !isFull
  // Without bounds in time or place, having seen all of the snapshot is the end: no last, empty fetch.
  const isWhole = from === undefined && to === undefined && request.after === undefined && seen === upTo
  const isLast = isLimited || isWhole || (isExhausted && scanTo >= upTo)
  const last = entries.at(-1)
  const after: Cursor | undefined =
    isExhausted && scanTo < upTo
      ? { order: "position", position: scanTo }
      : last === undefined
        ? before.after
        : cursorOf(order, last)
  return { entries, seen, after, isLast, isLimited }
}
