-- The payments of a partition.
SELECT payment, amount, note, paid_at
FROM payments
WHERE paid_at >= %(start)s AND paid_at < %(stop)s AND amount >= %(least)s
ORDER BY payment
