/**
 * What somebody else may have put in our place.
 *
 * Below a folder in which everybody may make entries, such as /tmp, any path may have been taken before: by a link that leads
 * a program of ours elsewhere, or by a folder whose owner exchanges what is in it. Such an entry is not used. (In a folder
 * with the sticky bit only the owner of an entry can remove or replace it: what was ours when it was looked at stays so.)
 *
 * JavaScript, as it is needed before any type is stripped.
 */
import { lstatSync, readlinkSync } from "node:fs"
import { dirname, join, parse, resolve, sep } from "node:path"

const othersMayWrite = 0o002
const sticky = 0o1000

/** So many links on one way are a circle, as for the system. */
const linksMax = 40

/** @param {string} path */
const partsOf = (path) => path.slice(parse(path).root.length).split(sep)

/**
 * The first entry on the way to `path`, itself included, that is not to be trusted. Each link is looked at itself, and then
 * followed. What belongs to us, to the system or to `account` is fine, and what is not there.
 *
 * @param {string} path
 * @param {number} [account]
 * @returns {{ readonly path: string, readonly problem: string } | undefined}
 */
export const foreignEntry = (path, account) => {
  const self = process.getuid?.()
  // A system without such owners has no such public places either.
  if (self === undefined) return undefined
  let left = partsOf(resolve(path))
  let current = parse(resolve(path)).root
  let isPublic = false
  let links = 0
  while (left.length > 0) {
    const entry = join(current, /** @type {string} */ (left.shift()))
    let found
    try {
      found = lstatSync(entry)
    } catch {
      // It is not there, or can't be looked at and not be used either: whoever tries says why.
      return undefined
    }
    if (isPublic && found.uid !== self && found.uid !== 0 && found.uid !== account) {
      return { path: entry, problem: `belongs to the user ${found.uid}` }
    }
    if (found.isSymbolicLink()) {
      if (++links > linksMax) return { path: entry, problem: "is a link that leads to itself" }
      const target = resolve(dirname(entry), readlinkSync(entry))
      left = [...partsOf(target), ...left]
      current = parse(target).root
      isPublic = false
      continue
    }
    const isOpen = (found.mode & othersMayWrite) !== 0
    // Outside of a public place, a folder that everybody may write is what its owner wants: a volume, for example.
    if (isOpen && (found.mode & sticky) === 0 && (isPublic || found.isFile())) {
      return { path: entry, problem: "can be written by everybody" }
    }
    isPublic = isOpen
    current = entry
  }
  return undefined
}
