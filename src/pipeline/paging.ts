/** Packs entries into pages that fill the broker's `max_payload` well and never exceed it. Pure. */
import { encodeEntry, encodePage, type Page } from "../contract/Event.ts"
import { pageOverheadBytes } from "../contract/limits.ts"
import type { Cursor } from "../contract/Cursor.ts"
import type { LogEntry } from "../contract/LogEntry.ts"
import type { ObjectId } from "../contract/ObjectId.ts"

/** An entry does not fit in any page: `max_payload` was lowered since it was appended. */
export interface TooLarge {
  readonly position: number
  readonly bytes: number
}

/** A page that is full, encoded, and the entry that it ends with. */
interface FullPage {
  readonly payload: string
  readonly end: LogEntry
}

export interface Packer {
  /** Adds entries; gives the pages that are full now. */
  readonly add: (entries: ReadonlyArray<LogEntry>) => ReadonlyArray<FullPage>
  /** How many entries are in the page that is not full yet. */
  readonly held: () => number
  /** Bytes of all entries that were added, encoded. */
  readonly bytes: () => number
  /** The last page, which may be empty. */
  readonly finish: (next: Cursor | undefined) => string
  /** Set when `add` met an entry that no page can hold; nothing after it was added. */
  readonly tooLarge: () => TooLarge | undefined
}

export interface PackerOptions {
  readonly id: ObjectId
  readonly requestId: string | undefined
  /** Bytes, see `pageMaxBytes`. */
  readonly pageMax: number
  readonly snapshot: string
  /** The number of the first page. */
  readonly page: number
}

export const makePacker = ({ id, page: first, pageMax, requestId, snapshot }: PackerOptions): Packer => {
  const budget = pageMax - pageOverheadBytes
  let number = first
  let held: Array<string> = []
  let heldBytes = 0
  let last: LogEntry | undefined
  let allBytes = 0
  let tooLarge: TooLarge | undefined

  const encode = (page: Omit<Page, "snapshot" | "page" | "entries">): string => {
    const text = encodePage(id, { ...page, snapshot, page: number++, entries: held }, requestId)
    held = []
    heldBytes = 0
    return text
  }

  return {
    add: (entries) => {
      const full: Array<FullPage> = []
      for (const entry of entries) {
        const text = encodeEntry(entry)
        // The comma counts too.
        const bytes = Buffer.byteLength(text) + 1
        if (bytes > budget + entryOverheadBytes) {
          tooLarge = { position: entry.position, bytes }
          break
        }
        if (heldBytes + bytes > budget && held.length > 0) {
          full.push({ payload: encode({ last: false, next: undefined }), end: last! })
        }
        held.push(text)
        heldBytes += bytes
        allBytes += bytes
        last = entry
      }
      return full
    },
    held: () => held.length,
    bytes: () => allBytes,
    finish: (next) => encode({ last: true, next }),
    tooLarge: () => tooLarge,
  }
}

/** What an entry adds to its log's JSON at most: names and three numbers of up to 20 digits. */
const entryOverheadBytes = 128
