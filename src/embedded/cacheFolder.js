import { existsSync } from "node:fs"
import { homedir } from "node:os"
import { isAbsolute, join } from "node:path"

/**
 * Where this program keeps what it can make again, below the user's own folder: nobody else can put something there. A user
 * who is only a number may have none. A relative path would be another folder from each place where the program is started.
 *
 * @returns {string | undefined}
 */
export const cacheFolder = () => {
  const given = process.env["XDG_CACHE_HOME"]
  if (given && isAbsolute(given)) return join(given, "objectlog")
  try {
    const home = homedir()
    // A home that is not there is not made: Node would try for ever where that is not allowed.
    return isAbsolute(home) && existsSync(home) ? join(home, ".cache", "objectlog") : undefined
  } catch {
    return undefined
  }
}
