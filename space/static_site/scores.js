/** From the logits of a picture to probabilities, and to whether it shows one of the labels. */

/** @param {ArrayLike<number>} logits */
export function softmax(logits) {
  const highest = Math.max(...Array.from(logits));
  const powers = Array.from(logits, logit => Math.exp(logit - highest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map(power => power / sum);
}

/** The scores of classifier/models/logit_scores.py: higher the more a picture resembles the training images. */
export const SCORES = {
  /** @param {ArrayLike<number>} logits */
  energy(logits) {
    const highest = Math.max(...Array.from(logits));
    return highest + Math.log(Array.from(logits, logit => Math.exp(logit - highest)).reduce((a, b) => a + b, 0));
  },
  /** @param {ArrayLike<number>} logits */
  gen(logits) {
    const likely = softmax(logits)
      .sort((a, b) => b - a)
      .slice(0, 100);
    return -likely.reduce((sum, p) => sum + (p * (1 - p)) ** 0.1, 0);
  },
  /** @param {ArrayLike<number>} logits */
  max_probability(logits) {
    return Math.max(...softmax(logits));
  },
};

/**
 * The `k` most probable labels, the most probable first.
 * @param {number[]} probabilities
 * @param {string[]} labels
 * @param {number} k
 */
export function topLabels(probabilities, labels, k) {
  return probabilities
    .map((probability, i) => ({ label: labels[i], probability }))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, k);
}

/**
 * A row of a CSV file (RFC 4180).
 * @param {(string | number)[]} cells
 */
export function csvRow(cells) {
  const quoted = cells.map(cell => {
    const text = String(cell);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  });
  return `${quoted.join(',')}\r\n`;
}
