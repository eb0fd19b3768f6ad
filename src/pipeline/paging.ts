/** Packs entries into pages that fill the broker's `max_payload` well and never exceed it. Pure. */
import { encodeEntry, encodePage, pageOverheadBytes, type Page } from "../domain/Protocol.ts"
import type { Cursor } from "../domain/Cursor.ts"
import type { LogEntry } from "../domain/LogEntry.ts"
import type { ObjectId } from "../domain/ObjectId.ts"

/** An entry does not fit in any page: `max_payload` was lowered since it was appended. */
export interface TooLarge {
  readonly position: number
  readonly bytes: number
}

export interface Packer {
  /** Adds entries; gives the pages that are full now, encoded. */
  readonly add: (entries: ReadonlyArray<LogEntry>) => ReadonlyArray<string>
  /** The last page, which may be empty. */
  readonly finish: (next: Cursor | undefined) => string
  /** Set when `add` met an entry that no page can hold; nothing after it was added. */
  readonly tooLarge: () => TooLarge | undefined
}

export const makePacker = (
  id: ObjectId,
  requestId: string | undefined,
  maxPayload: number,
  snapshot: string,
): Packer => {
  const budget = maxPayload - pageOverheadBytes
  let number = 0
  let held: Array<string> = []
  let heldBytes = 0
  let tooLarge: TooLarge | undefined

  const encode = (page: Omit<Page, "snapshot" | "page" | "entries">): string => {
    const text = encodePage(id, { ...page, snapshot, page: number++, entries: held }, requestId)
    held = []
    heldBytes = 0
    return text
  }

  return {
    add: (entries) => {
      const full: Array<string> = []
      for (const entry of entries) {
        const text = encodeEntry(entry)
        // The comma counts too.
        const bytes = Buffer.byteLength(text) + 1
        if (bytes > budget + entryOverheadBytes) {
          tooLarge = { position: entry.position, bytes }
          break
        }
        if (heldBytes + bytes > budget && held.length > 0) full.push(encode({ last: false, next: undefined }))
        held.push(text)
        heldBytes += bytes
      }
      return full
    },
    finish: (next) => encode({ last: true, next }),
    tooLarge: () => tooLarge,
  }
}

/** What an entry adds to its log's JSON at most: names and three numbers of up to 20 digits. */
const entryOverheadBytes = 128
