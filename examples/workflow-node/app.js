// An order: paid with retries, approved by an event within a time, its items packed at once.
'use strict';

const { activity, allOf, anyOf, event, serve, timer } = require('./flow.js');

function* order({ total, items }) {
  const payment = yield activity('charge', total, { retry: { attempts: 4, first: '100ms', factor: 2 } });
  if (total > 1000) {
    const approval = event('approve');
    const first = yield anyOf(approval, timer('1m'));
    if (first !== approval || !approval.result) {
      yield activity('refund', payment);
      return { state: 'refused' };
    }
  }
  const parcels = yield allOf(...items.map((item) => activity('pack', item)));
  return { state: 'sent', payment, parcels };
}

function charge(total, headers) {
  if (headers['mesh-workflow-attempt'] === '1') {
    console.log('The bank is away');
    throw new Error('the bank is away');
  }
  console.log(`Charged ${total} for ${headers['mesh-workflow-instance']}`);
  return `payment of ${total}`;
}

const refund = (payment) => console.log(`Gave back the ${payment}`);
const pack = (item) => `a box with a ${item}`;

serve({ order }, { charge, refund, pack });
