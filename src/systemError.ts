/** What the system said, in its own words: of all that wraps an error, that is what helps. */
import { getSystemErrorMessage } from "node:util"

/** `ENOSPC`, and `no space left on device (ENOSPC)`. */
export interface SystemReason {
  readonly code: string
  readonly text: string
}

/** The system's reason in an error or its causes; `undefined` where it is not the system that refused. */
export const systemReason = (error: unknown): SystemReason | undefined => {
  for (let at = error; typeof at === "object" && at !== null;) {
    if ("code" in at && typeof at.code === "string" && /^E[A-Z0-9]+$/.test(at.code)) {
      const known = "errno" in at && typeof at.errno === "number" ? getSystemErrorMessage(at.errno) : undefined
      return { code: at.code, text: known === undefined ? at.code : `${known} (${at.code})` }
    }
    at = "reason" in at ? at.reason : "cause" in at ? at.cause : undefined
  }
  return undefined
}

/** That, or the error's own message. */
export const reasonText = (error: unknown): string =>
  systemReason(error)?.text ?? (error instanceof Error ? error.message : String(error))
