"""An order: paid with retries, approved by an event within a time, its items packed at once."""

from flow import activity, all_of, any_of, event, serve, timer


def order(given):
    payment = yield activity("charge", given["total"], retry={"attempts": 4, "first": "100ms", "factor": 2})
    if given["total"] > 1000:
        approval = event("approve")
        first = yield any_of(approval, timer("1m"))
        if first is not approval or not approval.result:
            yield activity("refund", payment)
            return {"state": "refused"}
    parcels = yield all_of(*(activity("pack", item) for item in given["items"]))
    return {"state": "sent", "payment": payment, "parcels": parcels}


def charge(total, headers):
    if headers["mesh-workflow-attempt"] == "1":
        print("The bank is away", flush=True)
        raise ConnectionError("the bank is away")
    print(f"Charged {total} for {headers['mesh-workflow-instance']}", flush=True)
    return f"payment of {total}"


def refund(payment, _):
    print(f"Gave back the {payment}", flush=True)


def pack(item, _):
    return f"a box with a {item}"


serve({"order": order}, {"charge": charge, "refund": refund, "pack": pack})
