/** The pages of a read as events. Pure, but for its trace. */
import { Schema } from "effect"
import type { OutgoingEvent } from "../broker/Broker.ts"
import type { FirstPage } from "../shard/ShardPool.ts"
import * as limits from "./limits.ts"
import { outcomeId } from "./outcome.ts"
import { makePacker, type Packer, type TooLarge } from "./paging.ts"
import { nextQuery, type Place, type Read, snapshotName, step } from "./readPlan.ts"

/** An entry does not fit in any page: `max_payload` was lowered since it was appended. */
export class EntryTooLarge extends Schema.TaggedError<EntryTooLarge>()("EntryTooLarge", {
  position: Schema.Number,
  bytes: Schema.Number,
  pageMax: Schema.Number,
}) {
  override get message(): string {
    return `entry ${this.position}: needs ${this.bytes} bytes, more than the broker's max_payload of ${this.pageMax} leaves`
  }
}

export const entryTooLarge = ({ pageMax }: Read, { bytes, position }: TooLarge): EntryTooLarge =>
  new EntryTooLarge({ position, bytes, pageMax })

/** Where a read begins. */
export const begin = ({ request }: Read): Place => ({ after: request.after, seen: 0 })

/** For pages of a read from a number on. */
export const packerFor = ({ pageMax, request: { id, requestId } }: Read, upTo: number, page: number): Packer =>
  makePacker({ id, requestId, pageMax, snapshot: snapshotName(upTo, pageMax), page })

/** The events of pages from a number on; one trace goes on in all of them. */
export const pageEvents = (
  { delivery, pageMax, request: { replyTo } }: Read,
  payloads: ReadonlyArray<string>,
  upTo: number,
  firstPage: number,
): ReadonlyArray<OutgoingEvent> => {
  if (payloads.length === 0) return []
  const trace = delivery.trace?.send(payloads.length)
  const prefix = `${outcomeId(delivery)}-${snapshotName(upTo, pageMax)}`
  return payloads.map((payload, i) => ({ payload, messageId: `${prefix}-${firstPage + i}`, replyTo, trace }))
}

/** A read that its first fetch answers. */
export interface SmallRead {
  readonly read: Read
  readonly events: ReadonlyArray<OutgoingEvent>
  readonly entries: number
}

/** All pages of a read, if its first fetch brought all that it asks for. */
export const smallRead = (read: Read, { entries, isCut, upTo }: FirstPage): SmallRead | EntryTooLarge | undefined => {
  const { request } = read
  const query = nextQuery(request, begin(read), limits.firstEntriesMax)
  const found = step(request, begin(read), query, entries, upTo, isCut)
  if (!found.isLast) return undefined
  const packer = packerFor(read, upTo, 0)
  const payloads = packer.add(found.entries).map(({ payload }) => payload)
  const tooLarge = packer.tooLarge()
  if (tooLarge !== undefined) return entryTooLarge(read, tooLarge)
  payloads.push(packer.finish(found.isLimited ? found.after : undefined))
  return { read, events: pageEvents(read, payloads, upTo, 0), entries: found.entries.length }
}
