/**
 * One read: what it asks for is fetched, packed into pages and sent.
 *
 * Its first page comes with those of other reads (`ReadQueue`), and for a small read that is all. What is longer goes on by itself, in
 * turns. A turn has memory for one fetch and one page, which all reads of a worker share fairly between shards and objects (`Shares`);
 * after some pages it makes way for others that wait, and the next turn begins behind the last page that was sent. So a read of any
 * length costs no more memory than another one, and a hundred reads of one large log leave room for one of another.
 *
 * All pages show one snapshot: positions are given in the order of commit and without gaps, so "all up to the number of entries at
 * the first fetch" is a snapshot that needs no transaction and no connection between pages.
 */
import { Effect, Schema } from "effect"
import type { OutgoingEvent } from "../broker/Broker.ts"
import { type LogEntry, storedBytes } from "../domain/LogEntry.ts"
import type { FirstPage, ReadQuery } from "../shard/ShardPool.ts"
import * as limits from "./limits.ts"
import { outcomeId } from "./outcome.ts"
import { makePacker, type TooLarge } from "./paging.ts"
import { cursorOf, nextQuery, type Place, type Read, snapshotName, step } from "./readPlan.ts"
import type { ReadQueue } from "./ReadQueue.ts"

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

/** Serves a read: all of its pages are confirmed when this succeeds. */
export const serveRead = (queue: ReadQueue, read: Read) =>
  Effect.flatMap(
    queue.withFirstPage(read, (page) => sendSmall(queue, read, page)),
    (upTo) => (upTo === undefined ? Effect.void : sendLong(queue, read, upTo)),
  )

const begin = ({ request }: Read): Place => ({ after: request.after, seen: 0 })

/** Sends everything, if the first fetch brought that; otherwise gives the end of the snapshot. */
const sendSmall = Effect.fnUntraced(function* (queue: ReadQueue, read: Read, { entries, isCut, upTo }: FirstPage) {
  const { request } = read
  const query = nextQuery(request, begin(read), limits.firstEntriesMax)
  const found = step(request, begin(read), query, entries, upTo, isCut)
  if (!found.isLast) return upTo
  const packer = packerFor(read, upTo, 0)
  const payloads = packer.add(found.entries).map(({ payload }) => payload)
  const tooLarge = packer.tooLarge()
  if (tooLarge !== undefined) return yield* refusal(read, tooLarge)
  payloads.push(packer.finish(found.isLimited ? found.after : undefined))
  yield* publish(queue, read, payloads, upTo, 0)
  yield* queue.read(found.entries.length)
  return undefined
})

/** The end of the last page that was sent. */
interface Progress {
  place: Place
  pages: number
}

const sendLong = Effect.fnUntraced(function* (queue: ReadQueue, read: Read, upTo: number) {
  const progress: Progress = { place: begin(read), pages: 0 }
  while (!(yield* queue.withMemory(read, takeTurn(queue, read, upTo, progress))));
})

/** One turn; whether that was the last one. */
const takeTurn = Effect.fnUntraced(function* (queue: ReadQueue, read: Read, upTo: number, progress: Progress) {
  const { request } = read
  const packer = packerFor(read, upTo, progress.pages)
  const pagesBefore = progress.pages
  let { place } = progress
  for (let fetches = 1; ; fetches++) {
    const query = nextQuery(request, place, limits.fetchEntriesMax)
    const fetched = yield* queue.fetch({ ...query, order: request.order, upTo, maxBytes: limits.fetchBytesMax })
    const found = step(request, place, query, fetched, upTo, isFull(query, fetched))
    const full = packer.add(found.entries)
    const tooLarge = packer.tooLarge()
    const payloads = full.map(({ payload }) => payload)
    if (tooLarge === undefined && found.isLast) payloads.push(packer.finish(found.isLimited ? found.after : undefined))
    place = found
    yield* publish(queue, read, payloads, upTo, progress.pages)
    progress.pages += payloads.length
    if (tooLarge !== undefined) return yield* refusal(read, tooLarge)
    yield* queue.read(found.entries.length)
    if (found.isLast) return true
    const end = full.at(-1)?.end
    if (packer.held() === 0) progress.place = place
    else if (end !== undefined) {
      progress.place = { after: cursorOf(request.order, end), seen: place.seen - packer.held() }
    }
    // What is packed and not sent is fetched once more then; so a turn must have sent something, or found nothing.
    const hasProgress = progress.pages > pagesBefore || packer.held() === 0
    if (fetches >= limits.turnFetches && hasProgress && queue.isContended()) return false
  }
})

/** May a fetch have ended because of its bytes? */
const isFull = ({ maxEntries }: ReadQuery, fetched: ReadonlyArray<LogEntry>): boolean =>
  fetched.length < maxEntries && fetched.reduce((sum, { log }) => sum + storedBytes(log), 0) >= limits.fetchBytesMax

const packerFor = ({ pageMax, request: { id, requestId } }: Read, upTo: number, page: number) =>
  makePacker({ id, requestId, pageMax, snapshot: snapshotName(upTo, pageMax), page })

const refusal = ({ pageMax }: Read, { bytes, position }: TooLarge) => new EntryTooLarge({ position, bytes, pageMax })

const publish = Effect.fnUntraced(function* (
  queue: ReadQueue,
  { delivery, pageMax, request: { replyTo } }: Read,
  payloads: ReadonlyArray<string>,
  upTo: number,
  firstPage: number,
) {
  if (payloads.length === 0) return
  const trace = delivery.trace?.send(payloads.length)
  const prefix = `${outcomeId(delivery)}-${snapshotName(upTo, pageMax)}`
  const events = payloads.map((payload, i): OutgoingEvent => ({
    payload,
    messageId: `${prefix}-${firstPage + i}`,
    replyTo,
    trace,
  }))
  yield* queue.publish({ events, pageMax })
  delivery.trace?.sent()
})
