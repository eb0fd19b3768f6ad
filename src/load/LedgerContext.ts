/** What the ledgers of all objects of a run share. */
import type { Texts } from "./Texts.ts"
import type { ViolationKind } from "./Violation.ts"

export interface Floor {
  readonly seq: number
  readonly at: number
}

export interface LedgerContext {
  readonly texts: Texts
  /** Whether logs are read back: then an append is settled by its entry, else by its event. */
  readonly verify: boolean
  /** How long a stored append may be missing in a log that can be read, where the broker's floor is not known. */
  readonly timeoutMillis: number
  readonly violated: (kind: ViolationKind, object: { readonly id: bigint }, reason: string) => void
  readonly counters: { verified: number; foreign: number }
  /** Appends that are not settled, over all objects. */
  pending: number
  /**
   * The workers were done with all appends up to this sequence number at that time: each was committed and its event stored.
   * So nothing up to here may be missing, however long an outage before it was.
   */
  floor: Floor | undefined
  /** The same, seen long enough ago for the events to have arrived. */
  eventFloor: Floor | undefined
}
