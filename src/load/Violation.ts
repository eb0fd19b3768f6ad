/** What the load generator looks for: a broken guarantee of the service. */
import { Schema } from "effect"

export type ViolationKind =
  /** Stored by the broker, and not in the log. */
  | "lost"
  /** In the log twice, or a position given twice. */
  | "duplicated"
  /** Sent in sequence, and read in another one. */
  | "reordered"
  /** A position that no entry has. */
  | "gap"
  /** The text that came back is another one. */
  | "altered"
  /** Two events of one append, or event and entry, say different things. */
  | "contradicted"
  /** Answered before a read began, and not in it. */
  | "invisible"
  /** Answered with an error. */
  | "refused"
  /** Stored and never answered. */
  | "unanswered"
  /** An entry under the name of an append that was never sent to this object. */
  | "invented"

/** Says where and what; never shows a log text. */
export class Violation extends Schema.TaggedError<Violation>()("Violation", {
  kind: Schema.String,
  object: Schema.String,
  reason: Schema.String,
}) {
  override get message(): string {
    return `violation: ${this.kind}: object ${this.object}: ${this.reason}`
  }
}

/** The run could not be brought to an end: nothing is known to be wrong, and not all is known to be right. */
export class LoadUnfinished extends Schema.TaggedError<LoadUnfinished>()("LoadUnfinished", { reason: Schema.String }) {
  override get message(): string {
    return this.reason
  }
}
