import { homedir } from "node:os"
import { join } from "node:path"

/**
 * Where this program keeps what it can make again, below the user's own folder: nobody else can put something there. A user
 * who is only a number may have none.
 *
 * @returns {string | undefined}
 */
export const cacheFolder = () => {
  const given = process.env["XDG_CACHE_HOME"]
  if (given) return join(given, "objectlog")
  try {
    return join(homedir(), ".cache", "objectlog")
  } catch {
    return undefined
  }
}
