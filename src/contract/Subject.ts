/** Subjects of the broker. Pure. */

/** Longest, in UTF-16 code units: the server ends a connection for a line of more than 4,096 bytes, and one has two of them. */
const subjectMax = 512

/** Non-empty tokens, no wildcard, no white space, no control character. */
const publishable = /^[^\s.*>\p{Cc}]+(?:\.[^\s.*>\p{Cc}]+)*$/u

/** Whether something can be published to it. */
export const isPublishable = (subject: string): boolean =>
  subject.length <= subjectMax && subject.isWellFormed() && publishable.test(subject)
