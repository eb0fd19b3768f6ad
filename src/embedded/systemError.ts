/** What the system said: of all that wraps an error, that is what helps. */
import { getSystemErrorMessage } from "node:util"

/** The code of an error or its causes, where one has a code: the system's or Node's own. */
const coded = (error: unknown): (object & { readonly code: string }) | undefined => {
  for (let at = error; typeof at === "object" && at !== null;) {
    if ("code" in at && typeof at.code === "string") return at as object & { readonly code: string }
    at = "reason" in at ? at.reason : "cause" in at ? at.cause : undefined
  }
  return undefined
}

export const codeOf = (error: unknown): string | undefined => coded(error)?.code

/** What helps to know of an error: the system's words where it is the system that refused, else its own message. */
export const reasonText = (error: unknown): string => {
  const found = coded(error)
  if (found !== undefined && "errno" in found && typeof found.errno === "number") {
    return `${getSystemErrorMessage(found.errno)} (${found.code})`
  }
  const told = found ?? error
  return told instanceof Error ? told.message : String(told)
}
