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
import { Effect } from "effect"
import { type LogEntry, storedBytes } from "../contract/LogEntry.ts"
import type { ReadQuery } from "../shard/ShardPool.ts"
import * as limits from "./limits.ts"
import { begin, entryTooLarge, packerFor, pageEvents } from "./pages.ts"
import { cursorOf, nextQuery, type Place, type Read, step } from "./readPlan.ts"
import type { ReadQueue } from "./ReadQueue.ts"

/** Serves a read: all of its pages are confirmed when this succeeds. */
export const serveRead = (queue: ReadQueue, read: Read) =>
  Effect.flatMap(queue.begin(read), (upTo) => (upTo === undefined ? Effect.void : sendLong(queue, read, upTo)))

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
    if (tooLarge !== undefined) return yield* entryTooLarge(read, tooLarge)
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

const publish = Effect.fnUntraced(function* (
  queue: ReadQueue,
  read: Read,
  payloads: ReadonlyArray<string>,
  upTo: number,
  firstPage: number,
) {
  if (payloads.length === 0) return
  yield* queue.publish({ events: pageEvents(read, payloads, upTo, firstPage), pageMax: read.pageMax })
  read.delivery.trace?.sent()
})
