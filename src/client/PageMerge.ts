/** The pages of one read, put together as the contract says. */
import { parseCursor } from "../contract/Cursor.ts"
import type { Entry, PageEvent } from "../contract/Event.ts"
import type { Read } from "../contract/Request.ts"

export type ReadOrder = "asc" | "desc" | "position"

/** The order in which a read's entries come. */
export const orderOf = (read: Read): ReadOrder =>
  read.afterPosition !== undefined
    ? "position"
    : ((read.after === undefined ? undefined : parseCursor(read.after, read.id)?.order) ?? read.order ?? "asc")

const isAfter = (order: ReadOrder, entry: Entry, last: Entry): boolean => {
  if (order === "position") return entry.position > last.position
  const difference = entry.timestamp - last.timestamp || entry.seq - last.seq
  return order === "asc" ? difference > 0 : difference < 0
}

/** What can be handed on of a read. */
export interface MergedPage {
  readonly entries: ReadonlyArray<Entry>
  readonly last: boolean
  /** Where `limit` cut the read short. */
  readonly next: string | undefined
}

/** A page as an event has it. */
export type ReceivedPage = Pick<PageEvent, "snapshot" | "page" | "last" | "entries"> & {
  readonly next?: string | undefined
}

/** The pages of one snapshot. */
interface Snapshot {
  /** The next page to hand on. */
  expected: number
  /** Pages that came before their turn. */
  readonly early: Map<number, ReceivedPage>
}

/**
 * Puts a read's pages together, those of each snapshot for themselves and in their order. A read that another worker took
 * over starts again, with a snapshot of its own, and the pages of both may come mixed. What was handed on cannot be taken
 * back: in another snapshot it is skipped. Whichever snapshot has its last page first ends the read.
 */
export class PageMerge {
  readonly #order: ReadOrder
  readonly #snapshots = new Map<string, Snapshot>()
  /** The last entry that was handed on, and whose it was. */
  #last: Entry | undefined
  #lastOf: Snapshot | undefined

  constructor(order: ReadOrder) {
    this.#order = order
  }

  /** What can be handed on after a page arrived; `undefined` for one that repeats, or comes before its turn. */
  accept(page: ReceivedPage): MergedPage | undefined {
    let snapshot = this.#snapshots.get(page.snapshot)
    if (snapshot === undefined) this.#snapshots.set(page.snapshot, (snapshot = { expected: 0, early: new Map() }))
    if (page.page < snapshot.expected) return undefined
    snapshot.early.set(page.page, page)
    const entries: Array<Entry> = []
    let end: ReceivedPage | undefined
    const before = snapshot.expected
    for (let next; end === undefined && (next = snapshot.early.get(snapshot.expected)) !== undefined;) {
      snapshot.early.delete(snapshot.expected++)
      for (const entry of this.#fresh(snapshot, next.entries)) entries.push(entry)
      if (next.last) end = next
    }
    return snapshot.expected === before ? undefined : { entries, last: end !== undefined, next: end?.next }
  }

  /** Those of a page that were not handed on from another snapshot. */
  #fresh(snapshot: Snapshot, entries: ReadonlyArray<Entry>): ReadonlyArray<Entry> {
    const last = this.#last
    let fresh = entries
    if (last !== undefined && this.#lastOf !== snapshot) {
      // A position is unique in its object. Without it in this page, the sort order tells.
      const index = entries.findIndex((entry) => entry.position === last.position)
      const first = index >= 0 ? index + 1 : entries.findIndex((entry) => isAfter(this.#order, entry, last))
      fresh = first < 0 ? [] : entries.slice(first)
    }
    if (fresh.length > 0) {
      this.#last = fresh.at(-1)
      this.#lastOf = snapshot
    }
    return fresh
  }
}
