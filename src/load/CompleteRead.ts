/**
 * Checks one complete read of a log, oldest first, against what the ledger knows of it.
 *
 * Entries come by time, positions are in the order of commit: each up to the last one that was read before must be there,
 * once. Others may append meanwhile; what is beyond that position is theirs and proves nothing. A read that follows the
 * log may go on beside this one, so what was known is held as it was when this one began.
 */
import type { Entry } from "../contract/Event.ts"
import { showPlace } from "./Append.ts"
import { addDigest } from "./digest.ts"
import type { LedgerContext } from "./LedgerContext.ts"
import type { ObjectLedger } from "./ObjectLedger.ts"
import { differenceOf } from "./Texts.ts"
import type { ViolationKind } from "./Violation.ts"

export class CompleteRead {
  readonly #context: LedgerContext
  readonly #object: ObjectLedger
  /** What was read before. */
  readonly #known: Pick<ObjectLedger, "base" | "digest" | "position" | "readBack">
  readonly #seen: Uint8Array
  #seenCount = 0
  #digest = 0
  #own = 0
  #latestNumber = 0
  #latestTimestamp = -1

  constructor(object: ObjectLedger, context: LedgerContext) {
    this.#object = object
    this.#context = context
    const { base, digest, position, readBack } = object
    this.#known = { base, digest, position, readBack }
    this.#seen = new Uint8Array(Math.ceil((position + 1) / 8))
  }

  entry(entry: Entry): void {
    const { position, timestamp } = entry
    if (timestamp < this.#latestTimestamp) {
      this.#violated("reordered", `read by time, ${showPlace(entry)} came after timestamp ${this.#latestTimestamp}`)
    }
    this.#latestTimestamp = timestamp
    const name = this.#context.texts.parse(entry.log)
    const own = name?.object === this.#object.ordinal
    if (position > this.#known.position) {
      if (own) this.#violated("duplicated", `append ${name.number} is in the log once more, at ${showPlace(entry)}`)
      return
    }
    const [byte, bit] = [position >>> 3, 1 << (position & 7)]
    if ((this.#seen[byte]! & bit) !== 0) {
      this.#violated("duplicated", `position ${position} came twice, now with seq ${entry.seq}`)
    }
    this.#seen[byte]! |= bit
    this.#seenCount += 1
    if (position > this.#known.base) this.#digest = addDigest(this.#digest, entry)
    if (own) this.#ownEntry(name.number, entry)
  }

  end(): void {
    const { base, digest, position, readBack } = this.#known
    if (this.#seenCount !== position) {
      let missing = 1
      while ((this.#seen[missing >>> 3]! & (1 << (missing & 7))) !== 0) missing++
      this.#violated(
        "gap",
        `expected the positions 1 … ${position}, got ${this.#seenCount} of them; ${missing} is missing`,
      )
    }
    if (this.#own !== readBack) {
      this.#violated("lost", `${readBack} appends of this run were read before, now it has ${this.#own} of them`)
    }
    if (this.#digest !== digest) {
      this.#violated("contradicted", `the entries ${base + 1} … ${position} are not what they were when first read`)
    }
  }

  #ownEntry(number: number, entry: Entry): void {
    this.#own += 1
    const expected = this.#context.texts.log(this.#object.ordinal, number)
    if (entry.log !== expected) {
      this.#violated("altered", `append ${number} at ${showPlace(entry)}: ${differenceOf(expected, entry.log)}`)
    }
    if (this.#object.wasSentAgain(number)) return
    if (number <= this.#latestNumber) {
      this.#violated(
        "reordered",
        `append ${number} came after append ${this.#latestNumber}, which was sent later, at ${showPlace(entry)}`,
      )
    }
    this.#latestNumber = number
  }

  #violated(kind: ViolationKind, reason: string): void {
    this.#context.violated(kind, this.#object, reason)
  }
}
